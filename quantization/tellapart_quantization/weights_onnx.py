"""Weights of matrix products and of the word table in 8 bits, block by block.

For decoder, text tower and heads: full 8-bit arithmetic ruins a decoder (design notes: logits 34 % off) and
is no faster on one token. A word table that is also the output layer stays one tensor: looked up by
GatherBlockQuantized, multiplied by MatMulNBits. Both are onnxruntime's own, in 8 bits from 1.23 on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from tellapart_quantization.surgery import add_constant, constants, copy_model, drop_unused

DOMAIN = "com.microsoft"
BITS = 8
ZERO_POINT = 128
"""Both operators read stored bytes as value - 128 where no zero point is given."""

BLOCK_SIZES = (128, 64, 32, 16)
"""Weights that share a scale, the longest that divides a row: 3 % more bytes at 128."""

LEAST_WEIGHTS = 1024
"""Smaller matrices stay in float: nothing to gain."""


def quantize_weights(model: Any, *, only: Collection[str] | None = None) -> Any:
    """A graph whose constant matrices are stored in 8 bits; inputs, outputs and names are as before.

    Args:
        model: the float graph, its nodes named; not changed.
        only: names of the nodes that may change; None is all.
    """
    quantized = copy_model(model)
    stored = constants(quantized)
    makers = {name: node for node in quantized.graph.node for name in node.output}
    tables: dict[str, tuple[str, str, int]] = {}
    nodes: list[Any] = []
    for node in quantized.graph.node:
        if only is not None and node.name not in only:
            nodes.append(node)
        elif node.op_type in ("MatMul", "Gemm"):
            nodes.extend(_product(quantized, node, stored, makers, tables))
        elif node.op_type == "Gather" and node.input[0] in stored:
            nodes.append(_lookup(quantized, node, stored[node.input[0]], tables))
        else:
            nodes.append(node)
    del quantized.graph.node[:]
    quantized.graph.node.extend(nodes)
    if not any(entry.domain == DOMAIN for entry in quantized.opset_import):
        quantized.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    drop_unused(quantized)
    return quantized


def to_blocks(
    rows: npt.NDArray[np.float32], block: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Round rows of weights, each block with its own scale.

    Args:
        rows: (n, k) float32, k a multiple of `block`.
        block: weights per scale.

    Returns:
        (n, k) uint8, value = (byte - 128) * scale, and the scales, (n, k / block) float32.
    """
    parts = rows.reshape(len(rows), -1, block)
    scales = np.abs(parts).max(axis=2) / 127
    scales[scales == 0] = 1  # a block of zeros
    levels = np.rint(parts / scales[:, :, None]) + ZERO_POINT
    return levels.astype(np.uint8).reshape(rows.shape), scales.astype(np.float32)


def _block_size(width: int) -> int | None:
    return next((block for block in BLOCK_SIZES if width % block == 0), None)


def _table(
    model: Any, name: str, rows: npt.NDArray[np.float32], tables: dict[str, tuple[str, str, int]]
) -> tuple[str, str, int] | None:
    """Names of the stored (n, k) bytes and (n, k / block) scales, and the block; or None: not worth it."""
    block = _block_size(rows.shape[1])
    if block is None or rows.size < LEAST_WEIGHTS:
        return None
    if name not in tables:
        levels, scales = to_blocks(rows, block)
        tables[name] = (
            add_constant(model, f"{name}::int8", levels),
            add_constant(model, f"{name}::scales", scales),
            block,
        )
    return tables[name]


def _product(
    model: Any,
    node: Any,
    stored: dict[str, Any],
    makers: dict[str, Any],
    tables: dict[str, tuple[str, str, int]],
) -> list[Any]:
    """MatMul or Gemm with a constant second factor -> MatMulNBits; anything else as it is."""
    name = node.input[1]
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if (
        attributes.get("transA", 0)
        or attributes.get("alpha", 1.0) != 1.0
        or attributes.get("beta", 1.0) != 1.0
    ):
        return [node]
    turned = bool(attributes.get("transB", 0))
    maker = makers.get(name)
    if maker is not None and maker.op_type == "Transpose" and maker.input[0] in stored:
        # Rows of the word table as columns of the output layer; a permutation of two axes can only swap them.
        name, turned = maker.input[0], not turned
    if name not in stored or len(stored[name].dims) != 2:
        return [node]
    matrix = numpy_helper.to_array(stored[name])
    if matrix.dtype != np.float32:
        return [node]
    rows = np.ascontiguousarray(matrix if turned else matrix.T)  # (n, k): one row an output
    table = _table(model, name if turned else f"{name}::turned", rows, tables)
    if table is None:
        return [node]
    levels, scales, block = table
    shaped = f"{levels}::blocks"
    made: list[Any] = []
    if not any(entry.output[0] == shaped for entry in model.graph.node):
        shape = add_constant(
            model, f"{node.name}::shape", np.array([len(rows), rows.shape[1] // block, block], np.int64)
        )
        # The runtime folds this away; stored flat, the bytes serve the lookup as well.
        made.append(onnx.helper.make_node("Reshape", [levels, shape], [shaped], name=f"{node.name}::blocks"))
    inputs = [node.input[0], shaped, scales]
    if node.op_type == "Gemm" and len(node.input) > 2:
        inputs += ["", "", node.input[2]]
    made.append(
        onnx.helper.make_node(
            "MatMulNBits",
            inputs,
            list(node.output),
            name=node.name,
            domain=DOMAIN,
            K=rows.shape[1],
            N=len(rows),
            bits=BITS,
            block_size=block,
            accuracy_level=4,  # multiply in int8, activations rounded per block: several times faster
        )
    )
    return made


def _lookup(model: Any, node: Any, tensor: Any, tables: dict[str, tuple[str, str, int]]) -> Any:
    """Gather of whole rows of a constant table -> GatherBlockQuantized; anything else as it is."""
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    if axis != 0 or len(tensor.dims) != 2 or tensor.data_type != onnx.TensorProto.FLOAT:
        return node
    table = _table(model, tensor.name, numpy_helper.to_array(tensor), tables)
    if table is None:
        return node
    levels, scales, block = table
    return onnx.helper.make_node(
        "GatherBlockQuantized",
        [levels, node.input[1], scales],
        list(node.output),
        name=node.name,
        domain=DOMAIN,
        gather_axis=0,
        quantize_axis=1,
        block_size=block,
        bits=BITS,
    )
