"""The vision trunk in 8 bits: static ranges, weights per channel, all operators.

Made by onnxruntime's quantizer; the ranges are our own.

Activations are unsigned, weights signed: the pair that VNNI multiplies (both signed is three times slower). A
Clip that ends at the range of its convolution disappears into the rounding. Blocks may stay in float.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from onnx import shape_inference
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from tellapart.errors import UsageError
from tellapart_quantization.calibration import Range
from tellapart_quantization.surgery import FEATURES, ancestors, constants, copy_model, drop_unused, name_nodes


@dataclasses.dataclass(frozen=True)
class TrunkForm:
    """How the numbers of a trunk are rounded."""

    reduce_range: bool = False
    """Weights have seven bits, so that the sums of processors without 8-bit dot products cannot overflow."""
    symmetric: bool = False
    """Activations are signed with a zero point of 0, biases stay in float, and nothing but convolutions and
    sums is rounded: as TensorRT wants it."""


PLAIN = TrunkForm()

OPERATORS = ("Conv", "Clip", "Add")
"""What is quantized; leaving Add or Clip out costs far more error than it saves."""

_BLOCK = re.compile(r"\btrunk\.(stem|head|blocks\.\d+)\b")


def trunk_blocks(model: Any) -> dict[str, list[str]]:
    """Nodes of the trunk by block, in the order of the pass: "stem", "blocks.0", ..., "head".

    A node without weights belongs to the block of the convolution before it.

    Raises:
        UsageError: the graph has no tensor named `FEATURES`, so nobody knows where the trunk ends.
    """
    if not any(FEATURES in node.output for node in model.graph.node):
        raise UsageError(f"the vision graph has no tensor {FEATURES!r}; export the checkpoint again")
    inside = ancestors(model, [FEATURES])
    blocks: dict[str, list[str]] = {}
    current = None
    for node in model.graph.node:
        if node.name not in inside:
            continue
        found = [match.group(1) for name in node.input if (match := _BLOCK.search(name))]
        current = found[0] if found else current
        if current is not None and node.op_type in OPERATORS:
            blocks.setdefault(current, []).append(node.name)
    return blocks


def trunk_tensors(model: Any) -> list[str]:
    """Float tensors whose ranges `quantize_trunk` has to know."""
    stored = constants(model)
    nodes = {name for names in trunk_blocks(model).values() for name in names}
    tensors: dict[str, None] = {}
    for node in model.graph.node:
        if node.name in nodes:
            places = [*node.input[: 2 if node.op_type == "Add" else 1], *node.output]
            tensors.update({name: None for name in places if name and name not in stored})
    return list(tensors)


def quantize_trunk(
    model: Any,
    ranges: Mapping[str, Range],
    *,
    keep_float: Collection[str] = (),
    form: TrunkForm = PLAIN,
) -> Any:
    """A vision graph whose trunk computes in 8 bits; heads and names are as before.

    Args:
        model: the float graph; not changed.
        ranges: of every tensor that `trunk_tensors` names.
        keep_float: blocks that stay as they are, by the names of `trunk_blocks`.
        form: how numbers are rounded.

    Raises:
        UsageError: a block that does not exist.
    """
    blocks = trunk_blocks(model)
    unknown = [name for name in keep_float if name not in blocks]
    if unknown:
        raise UsageError(f"no block {unknown[0]!r} in the trunk; there are {', '.join(blocks)}")
    chosen = [name for block, names in blocks.items() if block not in keep_float for name in names]
    if not chosen:
        return copy_model(model)
    operators = [name for name in OPERATORS if name != "Clip"] if form.symmetric else list(OPERATORS)
    if form.symmetric:
        ranges = {name: (-max(-low, high), max(-low, high)) for name, (low, high) in ranges.items()}
    data = {name: tuple(np.array(end, np.float32) for end in found) for name, found in ranges.items()}
    quantizer = QDQQuantizer(
        shape_inference.infer_shapes(model),
        per_channel=True,
        reduce_range=form.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if form.symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=chosen,
        nodes_to_exclude=[],
        op_types_to_quantize=operators,
        extra_options={"ActivationSymmetric": True, "QuantizeBias": False} if form.symmetric else {},
    )
    quantizer.quantize_model()
    quantized = copy_model(quantizer.model.model)
    name_nodes(quantized)
    drop_unused(quantized)
    return quantized
