"""Activations of a Core ML vision package in 8 bits, with ranges that were found without Core ML.

coremltools finds ranges by running the package, which only a Mac can. The same operations run in onnxruntime
(`tellapart_coreml.as_onnx`), so the ranges are found there, photo by photo, and handed to coremltools' own
passes, which set a pair of `quantize` and `dequantize` round what computes in 8 bits. The written package is
then read back: each pair has to have the scale of its range.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.backends.coreml import load_coremltools
from tellapart.errors import ParityError, UsageError
from tellapart_coreml.as_onnx import to_onnx
from tellapart_coreml.package import Program
from tellapart_quantization.calibration import Range, find_ranges
from tellapart_quantization.int8_onnx import trunk_blocks
from tellapart_quantization.surgery import name_nodes

LEVELS = 127
"""Of a sign: zero points are 0."""

_PASSES = (
    "compression::insert_prefix_quantize_dequantize_pair",
    "compression::insert_suffix_quantize_dequantize_pair",
    "common::dequantize_quantize_pair_elimination",
)
_INSIDE = ("clip", "add", "pad")
"""Operations of a trunk besides its convolutions."""

_SLACK = 2.0**-8
"""A scale is stored in float16, and so are the ends of the range and the scales that it is made of."""

Feeds = Callable[[], Iterator[Mapping[str, npt.NDArray[Any]]]]
"""Photos as the vision graph of a bundle takes them, batch by batch."""


def activation_ranges(program: Program, feeds: Feeds, *, percentile: float) -> dict[str, Range]:
    """Ranges of every float value inside a vision program, run by onnxruntime.

    Args:
        program: of fixed shapes, one picture at a time.
        feeds: photos, (b, s, s, 3) uint8.
        percentile: see `Histogram.percentile_range`.
    """
    model = to_onnx(program)
    name_nodes(model)
    computed = {name for node in model.graph.node for name in node.output}
    values = (value for operation in program.operations for value in operation.outputs)
    names = [value.name for value in values if value.dtype.startswith("FLOAT") and value.name in computed]
    ranges = find_ranges(model, names, _pictures(program, feeds()), percentile=percentile)
    return {**dict.fromkeys(program.images, (0.0, 255.0)), **ranges}


def trunk_operations(program: Program, graph: Any) -> dict[str, list[str]]:
    """Operations of a package's trunk by block, in the order of the pass: "stem", "blocks.0", ..., "head".

    A package does not say which weight is whose, but its convolutions come in the order of the ONNX graph's.
    An operation without weights belongs to the block of the convolution before it, and what prepares the
    pixels to the first.

    Args:
        program: the vision package.
        graph: the vision graph of the same checkpoint, an `onnx.ModelProto` whose nodes have names.

    Raises:
        UsageError: the graph has no trunk, or other convolutions than the package.
    """
    names = {node.name: node for node in graph.graph.node}
    blocks = trunk_blocks(graph)
    coming = [block for block, nodes in blocks.items() for name in nodes if names[name].op_type == "Conv"]
    have = [operation for operation in program.operations if operation.kind == "conv"]
    if len(have) != len(coming):
        raise UsageError(
            f"the vision package has {len(have)} convolutions and the trunk of the ONNX graph beside it "
            f"{len(coming)}, so its blocks cannot be named; export the checkpoint again: tellapart export "
            "CHECKPOINT --target onnx coreml"
        )
    found: dict[str, list[str]] = {block: [] for block in blocks}
    current = coming[0]
    for operation in program.operations:
        if operation.kind == "conv":
            current = coming.pop(0)
        elif not coming and operation.kind not in _INSIDE:
            break  # the trunk's features, and what reads them
        found[current] += [value.name for value in operation.outputs]
    return found


def quantize_activations(model: Any, ranges: Mapping[str, Range], *, keep_float: Collection[str] = ()) -> Any:
    """A package whose convolutions, products, pools and sums of two take and give 8 bits.

    Args:
        model: an `MLModel` in float16.
        ranges: by name of a value, see `activation_ranges`.
        keep_float: names of operations that stay as they are.

    Returns:
        An `MLModel` of specification 8 (iOS 17, macOS 14), the first that knows `quantize`.
    """
    coremltools = load_coremltools()
    import coremltools.optimize.coreml as optimize
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.models.utils import _apply_graph_pass

    settings = optimize.OptimizationConfig(
        global_config=optimize.OpLinearQuantizerConfig(mode="linear_symmetric"),
        op_name_configs=dict.fromkeys(keep_float),
    )
    stats = {name: {"rmin": low, "rmax": high} for name, (low, high) in ranges.items()}
    passes = [PASS_REGISTRY[name] for name in _PASSES]
    for own in passes[:2]:
        own.set_options([PassOption("config", settings), PassOption("activation_stats", stats)])
    return _apply_graph_pass(
        model,
        passes,
        spec_version=coremltools.target.iOS17.value,
        pymil_load_func=load,
        skip_model_load=True,
    )


def check_activations(program: Program, ranges: Mapping[str, Range], *, role: str) -> dict[str, Any]:
    """Is every pair of `quantize` and `dequantize` that was written made of its range?

    Args:
        program: read back from the package.
        ranges: by name of a value, see `activation_ranges`.
        role: of the graph, for the message.

    Returns:
        {"pairs", "largest_scale"}.

    Raises:
        ParityError: none was written, or one has another scale than its range asks for.
    """
    steps: dict[str, float] = {}
    # coremltools divides both sides of a sum by the scale of one, and the scale of its rounding with them.
    scaled: dict[str, float] = {}
    for operation in program.operations:
        read = [name for names in operation.inputs.values() for name in names if isinstance(name, str)]
        by = max(
            (scaled.get(name, 1.0) for name in read), key=lambda factor: abs(np.log(factor)), default=1.0
        )
        name = operation.outputs[0].name
        if operation.kind == "quantize":
            [source] = operation.inputs["input"]
            steps[name] = _number(program, operation.inputs["scale"][0]) / by
            wanted = max(map(abs, ranges[str(source)])) / LEVELS or 1.0 if source in ranges else None
            if wanted is not None and not abs(steps[name] - wanted) <= _SLACK * wanted:
                raise ParityError(
                    f"{role}: {source} is rounded in steps of {steps[name]:.4g}, and its range asks for "
                    f"{wanted:.4g}"
                )
        elif operation.kind == "dequantize":
            [source] = operation.inputs["input"]
            factor = _number(program, operation.inputs["scale"][0]) / steps[str(source)]
            if not abs(factor - 1) <= _SLACK:
                scaled[name] = factor
        elif by != 1.0:
            sides = [
                scaled.get(str(operation.inputs[key][0]), 1.0)
                for key in ("x", "y")
                if key in operation.inputs
            ]
            if operation.kind != "add" or not abs(sides[0] - sides[-1]) <= _SLACK * by:
                raise ParityError(
                    f"{role}: {name} reads what was rounded by one scale and is read by another"
                )
            scaled[name] = by
    if not steps:
        raise ParityError(f"{role}: coremltools rounded no activation to 8 bits")
    return {"pairs": len(steps), "largest_scale": max(steps.values())}


def _number(program: Program, found: Any) -> float:
    value = program.constants[found] if isinstance(found, str) else found
    return float(np.asarray(value).item())


def _pictures(
    program: Program, feeds: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    [name] = program.images
    for feed in feeds:
        for picture in feed["pixels"]:
            yield {name: picture.transpose(2, 0, 1)[None].astype(np.float32)}
