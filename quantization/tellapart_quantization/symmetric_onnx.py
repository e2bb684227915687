"""Weights in 8 bits by standard operators alone, zero points of 0: what TensorRT reads.

A constant matrix or word table becomes 8-bit levels and a DequantizeLinear with a scale for each output (or
row): a runtime that folds it computes in float, one that fuses it in 8 bits. A table that is also the output
layer stays one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tellapart.errors import ParityError
from tellapart_quantization.surgery import add_constant, constants, copy_model, drop_unused
from tellapart_quantization.weights_onnx import LEAST_WEIGHTS

_PLACES = {"MatMul": (1,), "Gemm": (1,), "Gather": (0,), "Transpose": (0,)}
"""Operators that read weights, and which of their inputs they are."""

_LEVELS = 127


def store_symmetric(model: Any, *, only: Collection[str] | None = None) -> Any:
    """A graph whose constant matrices are 8-bit levels behind DequantizeLinear; names are as before.

    Args:
        model: the float graph, its nodes named; not changed.
        only: names of the nodes whose weights may change; None is all.
    """
    stored = copy_model(model)
    have = constants(stored)
    axes: dict[str, int] = {}
    shared: set[str] = set()
    for node in stored.graph.node:
        for place, name in enumerate(node.input):
            tensor = have.get(name)
            if tensor is None:
                continue
            able = place in _PLACES.get(node.op_type, ()) and (only is None or node.name in only)
            if able and len(tensor.dims) == 2 and tensor.data_type == onnx.TensorProto.FLOAT:
                # A table's rows and a transposed one's are its outputs; of a product's factor the columns.
                turned = any(item.name == "transB" and item.i for item in node.attribute)
                axis = 0 if node.op_type in ("Gather", "Transpose") or turned else 1
                if axes.setdefault(name, axis) != axis:
                    shared.add(name)
            else:
                shared.add(name)
    nodes = []
    for name, axis in axes.items():
        matrix = numpy_helper.to_array(have[name])
        if name in shared or matrix.size < LEAST_WEIGHTS:
            continue
        scales = np.abs(matrix).max(axis=1 - axis, keepdims=True) / _LEVELS
        scales[scales == 0] = 1
        levels = np.rint(matrix / scales).astype(np.int8)
        scale = scales.ravel().astype(np.float32)
        inputs = [
            add_constant(stored, f"{name}::int8", levels),
            add_constant(stored, f"{name}::scales", scale),
            add_constant(stored, f"{name}::zero", np.zeros(len(scale), np.int8)),
        ]
        nodes.append(
            onnx.helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}::float", axis=axis)
        )
        stored.graph.initializer.remove(have[name])
    kept = list(stored.graph.node)
    del stored.graph.node[:]
    stored.graph.node.extend([*nodes, *kept])
    drop_unused(stored)
    return stored


def check_symmetric(model: Any) -> int:
    """How many pairs of QuantizeLinear and DequantizeLinear a graph has, all of them fit for TensorRT.

    Raises:
        ParityError: a zero point other than 0, a type other than int8, or an operator of onnxruntime's own.
    """
    have = constants(model)
    count = 0
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ParityError(
                f"{node.name}: {node.domain}.{node.op_type} is onnxruntime's own, not TensorRT's"
            )
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            count += 1
            zero = have.get(node.input[2]) if len(node.input) > 2 else None
            if zero is None:
                raise ParityError(f"{node.name}: its zero point is not stored")
            values = numpy_helper.to_array(zero)
            if values.dtype != np.int8 or values.any():
                raise ParityError(
                    f"{node.name}: a zero point of {values.dtype} {values.ravel()[:3]}, not int8 0"
                )
    return count
