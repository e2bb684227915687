"""Which other files an ONNX graph would read, found without an ONNX library.

A tensor may keep its numbers in a file beside the graph, under a path that the graph itself gives. A path
out of an untrusted graph must be known before a runtime follows it, and the device has no `onnx` package,
so this walks the fields by their numbers (onnx/onnx.proto3). Only fields that can hold a
tensor are entered; all else is skipped unread.
"""

from __future__ import annotations

from collections.abc import Iterator

from tellapart.backends.protobuf import fields
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
    for number, value, _ in fields(message):
        if value is None:
            continue
        if inside.get(number) == "Entry":
            entry = {part.number: bytes(part.content) for part in fields(value) if part.content is not None}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode("utf-8", "replace")
        elif number in inside:
            yield from _locations(value, inside[number], depth + 1)
