"""A part of a network -> an ONNX file with the very names and axes that its page in the manifest promises."""

from __future__ import annotations

import copy
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch

from tellapart.errors import ParityError
from tellapart.manifest import TensorSpec
from tellapart_export.graphs import SourceGraph

OPSET = 20
"""ONNX operator set: the first with Gelu, and read by every onnxruntime from 1.17 on."""

IR_VERSION = 9
"""File format that goes with the operator set; newer ones are refused by older runtimes."""

_OUTPUT = "output::"  # goes before a result's name until `_rename` has made room for it

_DTYPES = {
    "uint8": onnx.TensorProto.UINT8,
    "int64": onnx.TensorProto.INT64,
    "float32": onnx.TensorProto.FLOAT,
}


def export_graph(source: SourceGraph, file: Path) -> None:
    """Write the ONNX file of one graph; constants are folded, batch norms go into their convolutions.

    Args:
        source: what to export.
        file: where the `.onnx` goes, all tensors inside.

    Raises:
        ParityError: the exporter gave other inputs or outputs than the page promises.
    """
    spec = source.spec
    axes = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in spec.inputs
    )
    # A copy: training mode and gradients of the caller's network are not ours to change.
    module = copy.deepcopy(source.module).eval().requires_grad_(False)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            source.example,
            dynamo=True,
            optimize=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            # The exporter gives the names without looking whether a tensor inside has one of them already.
            output_names=[_OUTPUT + name for name in (*(t.name for t in spec.outputs), *source.inner)],
            dynamic_shapes=axes,
            verbose=False,
        )
    if program is None:
        raise ParityError(
            f"{spec.role}: the exporter returned nothing; this version of torch is not supported"
        )
    model = program.model_proto
    _tidy(model, source)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    # The trace refers to itself in circles and holds the weights twice; without this the next graph comes on
    # top.
    del program, model, module
    torch.compiler.reset()
    gc.collect()


def _tidy(model: Any, source: SourceGraph) -> None:
    """Names and shapes as promised; nothing in the file that the runtime does not need."""
    graph, spec = model.graph, source.spec
    _rename(graph)
    outputs = {value.name: value for value in graph.output}
    promised = [tensor.name for tensor in spec.outputs]
    inputs = [value.name for value in graph.input]
    if inputs != [tensor.name for tensor in spec.inputs] or set(outputs) != {*promised, *source.inner}:
        raise ParityError(f"{spec.role}: exported as {inputs} -> {sorted(outputs)}, which is not its page")
    del graph.output[:]
    graph.output.extend(_value_info(tensor) for tensor in spec.outputs)
    del graph.input[:]
    graph.input.extend(_value_info(tensor) for tensor in spec.inputs)
    del graph.value_info[:]
    del graph.metadata_props[:]
    for node in graph.node:  # stack traces of the trace: larger than a small network's weights
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    graph.name, graph.doc_string = spec.role, ""
    del model.metadata_props[:]
    model.ir_version = IR_VERSION


def _rename(graph: Any) -> None:
    """Give the results their own names; whatever inside had one of them becomes "<name>::inner"."""
    names = {value.name: value.name.removeprefix(_OUTPUT) for value in graph.output}
    names |= {new: f"{new}::inner" for old, new in names.items() if old != new}
    for node in graph.node:
        for place in (node.input, node.output):
            for index, name in enumerate(place):
                place[index] = names.get(name, name)
    for value in (*graph.initializer, *graph.output):
        value.name = names.get(value.name, value.name)


def _value_info(tensor: TensorSpec) -> Any:
    return onnx.helper.make_tensor_value_info(tensor.name, _DTYPES[tensor.dtype], list(tensor.shape))


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress on stdout, no remarks about torchvision, no warnings about torch's own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
