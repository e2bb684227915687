"""The wire format of protocol buffers, as much of it as ONNX files need: the device has no `onnx` package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tellapart.errors import BackendError

_VARINT, _EIGHT_BYTES, _SIZED, _FOUR_BYTES = 0, 1, 2, 5  # wire types; groups were never part of ONNX


class Field(NamedTuple):
    """One field of a message."""

    number: int

    content: memoryview | None
    """Of a field with a length: a message, a text or packed numbers; None where it is one number."""

    whole: memoryview
    """Its bytes as they stand in the message, to be copied unread."""


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message in their order; none is copied.

    Raises:
        BackendError: the bytes are no message.
    """
    place, end = 0, len(message)
    while place < end:
        start = place
        tag, place = _varint(message, place)
        wire, content = tag & 7, None
        if wire == _VARINT:
            _, place = _varint(message, place)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            place += 8 if wire == _EIGHT_BYTES else 4
        elif wire == _SIZED:
            size, place = _varint(message, place)
            content = message[place : place + size]
            place += size
        else:
            raise _not_onnx()
        if place > end:
            raise _not_onnx()
        yield Field(tag >> 3, content, message[start:place])


def sized_field(number: int, content: bytes | memoryview) -> bytes:
    """A message, a text or raw bytes as a field."""
    return b"".join((_to_varint(number << 3 | _SIZED), _to_varint(len(content)), content))


def number_field(number: int, value: int) -> bytes:
    """An integer of at least 0 as a field."""
    return _to_varint(number << 3 | _VARINT) + _to_varint(value)


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
    raise _not_onnx()


def _to_varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _not_onnx() -> BackendError:
    return BackendError("the bytes of the graph are not an ONNX model; export it again")
