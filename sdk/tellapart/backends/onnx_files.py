"""Which other files an ONNX graph would read, found without an ONNX library.

A tensor may keep its numbers in a file beside the graph, under a path that the graph itself gives. A path
out of an untrusted graph must be known before a runtime follows it, and the device has no `onnx` package,
so this walks the protocol buffer's fields by their numbers (onnx/onnx.proto3). Only fields that can hold a
tensor are entered; all else is skipped unread.
"""

from __future__ import annotations

from collections.abc import Iterator

from tellapart.errors import BackendError

# message -> {field number: message inside}.
_INSIDE = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_MAX_DEPTH = 64


def external_paths(model: bytes) -> set[str]:
    """Paths of the files in which a model's tensors lie, as the model gives them.

    Args:
        model: the bytes of an ONNX file.

    Raises:
        BackendError: the bytes are not an ONNX model.
    """
    return set(_locations(memoryview(model), "Model", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise BackendError("the ONNX graph is nested deeper than any exporter nests; export it again")
    inside = _INSIDE[kind]
    for number, value in _fields(message):
        if inside.get(number) == "Entry":
            entry = dict(_fields(value))
            if bytes(entry.get(1, b"")) == b"location":
                yield bytes(entry.get(2, b"")).decode("utf-8", "replace")
        elif number in inside:
            yield from _locations(value, inside[number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field; numbers of any size are passed over."""
    place, end = 0, len(message)
    while place < end:
        tag, place = _varint(message, place)
        wire = tag & 7
        if wire == 0:
            _, place = _varint(message, place)
        elif wire in (1, 5):
            place += 8 if wire == 1 else 4
        elif wire == 2:
            size, place = _varint(message, place)
            if place + size > end:
                raise _not_onnx()
            yield tag >> 3, message[place : place + size]
            place += size
        else:  # groups were never part of ONNX
            raise _not_onnx()
    if place != end:
        raise _not_onnx()


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


def _not_onnx() -> BackendError:
    return BackendError("the bytes of the graph are not an ONNX model; export it again")
