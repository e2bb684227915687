"""Small operations on ONNX graphs: who makes what, what leads to what, cut here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
from onnx import numpy_helper

FEATURES = "features"
"""Tensor between trunk and heads of a vision graph, (b, N, C) float32, whatever the precision around it."""


def copy_model(model: Any) -> Any:
    """A copy that shares nothing."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def constants(model: Any) -> dict[str, Any]:
    """Initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def ancestors(model: Any, outputs: Iterable[str]) -> set[str]:
    """Names of the nodes that some tensors depend on."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting, found = list(outputs), set()
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting.extend(node.input)
    return found


def cut(model: Any, outputs: Iterable[str]) -> Any:
    """The part of a graph that computes some of its tensors, which become its only outputs.

    Args:
        model: a graph whose nodes all have names; not changed.
        outputs: names of float32 tensors inside or at the end of it.
    """
    names = list(outputs)
    part = copy_model(model)
    kept = ancestors(part, names)
    nodes = [node for node in part.graph.node if node.name in kept]
    del part.graph.node[:]
    part.graph.node.extend(nodes)
    del part.graph.output[:]
    part.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    drop_unused(part)
    return part


def drop_unused(model: Any) -> None:
    """Remove, in place, the nodes that lead to no output and the initializers and notes that nobody reads."""
    kept = ancestors(model, [value.name for value in model.graph.output])
    nodes = [node for node in model.graph.node if node.name in kept]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    del model.graph.value_info[:]


def name_nodes(model: Any) -> None:
    """Give a name, in place, to every node that has none."""
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"node_{index}_{node.op_type}"


def add_constant(model: Any, name: str, array: Any) -> str:
    """Add an initializer in place; returns its name."""
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name
