"""The whole greedy search as one ONNX graph, made of the bytes of a decoder's without any ONNX library.

The decoder's graph becomes the body of an ONNX `Loop`, which carries the newest token and the growing keys
and values from one turn to the next; the choice of the next token and the end are in the graph. What depends
on the image alone is taken out in front of the loop. So a caption is one run of the runtime and not one a
token: nothing is handed in or out in between (docs/runtime.md has what that saves).

Nodes, tensors and types of the decoder are copied as the bytes they are; only what is added is written here,
by the field numbers of onnx/onnx.proto3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.backends.protobuf import fields, number_field, sized_field
from tellapart.manifest import GraphSpec, TensorSpec

# Numbers of the fields that are read or written.
_MODEL_GRAPH = 7
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 4, 5
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_TENSOR, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_VALUE_NAME, _TENSOR_NAME = 1, 8
_ATTRIBUTE_GRAPHS = (6, 11)

_TYPES = {"float32": 1, "int64": 7, "bool": 9}  # TensorProto.DataType
_ATTRIBUTE_IS_INT, _ATTRIBUTE_IS_GRAPH = 2, 5  # AttributeProto.AttributeType

_INPUTS, _OUTPUTS = {"ids", "past_kv", "cross_kv"}, {"logits", "present_kv"}
_OWN = "tellapart:"  # before the names that are added, so that none is there already


def greedy_page(decoder: GraphSpec) -> GraphSpec:
    """Inputs and outputs of the graph that `greedy_model` makes.

    `cross_kv` (2L, 1, H, N, D) float32 of one image; `most` and `fewest`, int64 without axes: the most turns,
    and how many pass before the end mark is allowed ->
    `tokens` (t,) int64, the end mark included where it came, and `all_logits` (t, 1, V) float32, which they
    were chosen by.
    """
    [cross_kv] = [tensor for tensor in decoder.inputs if tensor.name == "cross_kv"]
    [logits] = [tensor for tensor in decoder.outputs if tensor.name == "logits"]
    return GraphSpec(
        role="decoder",
        target=decoder.target,
        file=decoder.file,
        inputs=(cross_kv, TensorSpec("most", "int64", ()), TensorSpec("fewest", "int64", ())),
        outputs=(
            TensorSpec("tokens", "int64", ("t",)),
            TensorSpec("all_logits", "float32", ("t", 1, logits.shape[1])),
        ),
    )


def greedy_model(
    model: bytes, page: GraphSpec, *, start_id: int, end_id: int, banned_ids: Iterable[int]
) -> bytes | None:
    """Wrap a decoder's step into a loop.

    Args:
        model: the bytes of the decoder's ONNX file, all tensors inside.
        page: its page in the manifest.
        start_id: the token of the first step.
        end_id: the token that ends the loop.
        banned_ids: tokens that are never chosen.

    Returns:
        The bytes of a model with the inputs and outputs of `greedy_page`; None where the graph is not what a
        decoder's has to be, or its past cannot grow.

    Raises:
        BackendError: the bytes are not an ONNX model.
    """
    sizes = _sizes(page)
    if sizes is None:
        return None
    layers, heads, width, size = sizes
    around, parts = _taken_apart(model)
    inputs = {_text(value, _VALUE_NAME): value for value in parts[_GRAPH_INPUT]}
    outputs = {_text(value, _VALUE_NAME): value for value in parts[_GRAPH_OUTPUT]}
    marks = [*banned_ids, end_id]
    if set(inputs) != _INPUTS or set(outputs) != _OUTPUTS or not max(marks) < size <= len(model):
        return None
    before, body = _by_image(parts[_GRAPH_NODE], parts[_GRAPH_TENSOR])
    banned = np.zeros((1, size), np.float32)
    banned[0, marks[:-1]] = -np.inf
    endless = banned.copy()
    endless[0, end_id] = -np.inf
    step = [
        *(sized_field(_GRAPH_NODE, node) for node in body),
        _node("Less", [_OWN + "turn", "fewest"], [_OWN + "short"]),
        _node("Where", [_OWN + "short", _OWN + "endless", _OWN + "banned"], [_OWN + "closed"]),
        _node("Add", ["logits", _OWN + "closed"], [_OWN + "allowed"]),
        _node("ArgMax", [_OWN + "allowed"], [_OWN + "next"], _axis(1)),
        _node("Squeeze", [_OWN + "next"], [_OWN + "token"]),
        _node("Equal", [_OWN + "token", _OWN + "end"], [_OWN + "ended"]),
        _node("Not", [_OWN + "ended"], [_OWN + "going"]),
        sized_field(_GRAPH_NAME, b"step"),
        _value(_GRAPH_INPUT, _OWN + "turn", "int64", ()),
        _value(_GRAPH_INPUT, _OWN + "was_going", "bool", ()),
        sized_field(_GRAPH_INPUT, inputs["ids"]),
        sized_field(_GRAPH_INPUT, inputs["past_kv"]),
        _value(_GRAPH_OUTPUT, _OWN + "going", "bool", ()),
        _value(_GRAPH_OUTPUT, _OWN + "next", "int64", (1, 1)),
        sized_field(_GRAPH_OUTPUT, outputs["present_kv"]),
        _value(_GRAPH_OUTPUT, _OWN + "token", "int64", ()),
        sized_field(_GRAPH_OUTPUT, outputs["logits"]),
    ]
    whole = [
        *(sized_field(_GRAPH_NODE, node) for node in before),
        _node(
            "Loop",
            ["most", _OWN + "go", _OWN + "start", _OWN + "none"],
            [_OWN + "last", _OWN + "past", "tokens", "all_logits"],
            _body(b"".join(step)),
        ),
        sized_field(_GRAPH_NAME, b"greedy"),
        *(sized_field(_GRAPH_TENSOR, tensor) for tensor in parts[_GRAPH_TENSOR]),
        _tensor(_OWN + "banned", banned),
        _tensor(_OWN + "endless", endless),
        _tensor(_OWN + "end", np.array(end_id, np.int64)),
        _tensor(_OWN + "go", np.array(True)),
        _tensor(_OWN + "start", np.array([[start_id]], np.int64)),
        _tensor(_OWN + "none", np.zeros((layers, 1, heads, 0, width), np.float32)),
        sized_field(_GRAPH_INPUT, inputs["cross_kv"]),
        _value(_GRAPH_INPUT, "most", "int64", ()),
        _value(_GRAPH_INPUT, "fewest", "int64", ()),
        _value(_GRAPH_OUTPUT, "tokens", "int64", ("t",)),
        _value(_GRAPH_OUTPUT, "all_logits", "float32", ("t", 1, size)),
    ]
    return around + sized_field(_MODEL_GRAPH, b"".join(whole))


def _sizes(page: GraphSpec) -> tuple[int, int, int, int] | None:
    """2L, H, D and V of a decoder whose past can grow; None of any other."""
    shapes = {tensor.name: tensor.shape for tensor in (*page.inputs, *page.outputs)}
    past, logits = shapes.get("past_kv", ()), shapes.get("logits", ())
    if len(past) != 5 or len(logits) != 2 or isinstance(past[3], int):
        return None
    layers, _, heads, _, width = past
    size = logits[1]
    if isinstance(layers, str) or isinstance(heads, str) or isinstance(width, str) or isinstance(size, str):
        return None
    return layers, heads, width, size


def _taken_apart(model: bytes) -> tuple[bytes, defaultdict[int, list[memoryview]]]:
    """All of a model but its graph, as it stands, and the parts of the graph by their field's number."""
    around: list[memoryview] = []
    parts: defaultdict[int, list[memoryview]] = defaultdict(list)
    for field in fields(memoryview(model)):
        if field.number != _MODEL_GRAPH or field.content is None:
            around.append(field.whole)
            continue
        for part in fields(field.content):
            if part.content is not None:
                parts[part.number].append(part.content)
    return b"".join(around), parts


def _by_image(
    nodes: Sequence[memoryview], tensors: Sequence[memoryview]
) -> tuple[list[memoryview], list[memoryview]]:
    """The nodes that work on the image alone, and the others, which are those of a step."""
    constant = {_text(tensor, _TENSOR_NAME) for tensor in tensors}
    of_image = {"cross_kv"}
    before: list[memoryview] = []
    body: list[memoryview] = []
    for node in nodes:
        taken = set(_texts(node, _NODE_INPUT))
        # What works on constants alone is left where it is: the runtime computes it once, when it opens.
        if taken & of_image and taken <= of_image | constant and not _holds_a_graph(node):
            of_image.update(_texts(node, _NODE_OUTPUT))
            before.append(node)
        else:
            body.append(node)
    return before, body


def _holds_a_graph(node: memoryview) -> bool:
    """Whether a node has a graph inside, which may read values that are not among its inputs."""
    return any(
        part.number in _ATTRIBUTE_GRAPHS
        for attribute in fields(node)
        if attribute.number == _NODE_ATTRIBUTE and attribute.content is not None
        for part in fields(attribute.content)
    )


def _texts(message: memoryview, number: int) -> list[str]:
    return [
        bytes(field.content).decode("utf-8", "replace")
        for field in fields(message)
        if field.number == number and field.content is not None
    ]


def _text(message: memoryview, number: int) -> str:
    return next(iter(_texts(message, number)), "")


def _node(operator: str, inputs: Sequence[str], outputs: Sequence[str], attribute: bytes = b"") -> bytes:
    """A NodeProto in a graph."""
    parts = [sized_field(_NODE_INPUT, name.encode()) for name in inputs]
    parts += [sized_field(_NODE_OUTPUT, name.encode()) for name in outputs]
    return sized_field(_GRAPH_NODE, b"".join([*parts, sized_field(_NODE_OP, operator.encode()), attribute]))


def _axis(axis: int) -> bytes:
    """The attribute `axis` of a node."""
    content = sized_field(1, b"axis") + number_field(3, axis) + number_field(20, _ATTRIBUTE_IS_INT)
    return sized_field(_NODE_ATTRIBUTE, content)


def _body(graph: bytes) -> bytes:
    """The attribute `body` of a node."""
    content = sized_field(1, b"body") + sized_field(6, graph) + number_field(20, _ATTRIBUTE_IS_GRAPH)
    return sized_field(_NODE_ATTRIBUTE, content)


def _value(number: int, name: str, dtype: str, shape: Sequence[int | str]) -> bytes:
    """A ValueInfoProto as an input or output of a graph; a text is a free axis."""
    axes = [
        sized_field(1, number_field(1, size) if isinstance(size, int) else sized_field(2, size.encode()))
        for size in shape
    ]
    tensor = number_field(1, _TYPES[dtype]) + sized_field(2, b"".join(axes))
    return sized_field(
        number, sized_field(_VALUE_NAME, name.encode()) + sized_field(2, sized_field(1, tensor))
    )


def _tensor(name: str, array: npt.NDArray[Any]) -> bytes:
    """A TensorProto as a constant of a graph."""
    content = [number_field(1, size) for size in array.shape]
    content += [number_field(2, _TYPES[array.dtype.name]), sized_field(_TENSOR_NAME, name.encode())]
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return sized_field(_GRAPH_TENSOR, b"".join([*content, sized_field(9, little.tobytes())]))
