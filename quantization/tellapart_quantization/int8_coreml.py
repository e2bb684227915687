"""Core ML packages with weights in 8 bits, by coremltools; activations stay in float16 unless asked for.

What was written is read back by our own reader: every stored weight has to lie within half a step of the
float package's.
"""

from __future__ import annotations

import gc
import io
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.backends.coreml import load_coremltools
from tellapart.bundle import Bundle
from tellapart.errors import ParityError
from tellapart.manifest import GraphSpec
from tellapart_coreml.package import Program, load_model, read_package, save_package
from tellapart_quantization.activations_coreml import (
    Feeds,
    activation_ranges,
    check_activations,
    quantize_activations,
)
from tellapart_quantization.calibration import Range

LEAST_WEIGHTS = 1024
"""Smaller constants stay in float16."""

# Of a step: a scale in float16 is off by up to 2^-11 of itself, and 127 of it by 0.06 of a step.
_SLACK = 0.07
# Where it is so small that float16 has few digits left for it, 127 halves of the smallest number.
_LEAST_HALF = 127 * 2.0**-25


def write_coreml_graphs(
    source: Bundle,
    scratch: Path,
    graphs: Sequence[GraphSpec],
    *,
    say: Callable[[str], None],
    feeds: Feeds | None = None,
    percentile: float = 100.0,
    keep_float: Collection[str] = (),
) -> tuple[tuple[GraphSpec, ...], dict[str, Any]]:
    """Quantize the packages of a bundle; each channel gets a scale, and zero points are 0.

    Args:
        source: the float bundle.
        scratch: folder of the bundle to be.
        graphs: its graphs for Core ML.
        say: told how large each was and is.
        feeds: photos to calibrate the vision package on, whose activations become 8 bits too; None leaves
            them.
        percentile: share of an activation's values inside its range, percent.
        keep_float: operations of the vision package whose activations stay in float16, by name.

    Returns:
        The pages, which are as before; and by role {"tensors", "numbers", "largest_step"}: tensors in 8 bits,
        the share of all stored numbers in them, and the largest error in steps (rounding is at most 0.5);
        with `feeds` for vision also {"pairs", "largest_scale"}.

    Raises:
        MissingExtraError: coremltools is not installed.
        ParityError: a weight is not what it was.
    """
    load_coremltools()
    import coremltools.optimize.coreml as optimize

    found: dict[str, Any] = {}
    for graph in graphs:
        given = source.root / graph.file
        settings = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=LEAST_WEIGHTS)
        out = scratch / graph.file
        ranges: dict[str, Range] = {}
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # progress bars
            warnings.simplefilter("ignore")
            model = load_model(given)
            if feeds is not None and graph.role == "vision":
                say("calibrating the vision package")
                ranges = activation_ranges(read_package(given), feeds, percentile=percentile)
                model = quantize_activations(model, ranges, keep_float=keep_float)
            model = optimize.linear_quantize_weights(
                model, optimize.OptimizationConfig(global_config=settings)
            )
            save_package(model, out)
            del model
            gc.collect()  # it leaves temporary folders to the collector, which warns of that
        written = read_package(out)
        found[graph.role] = compare_weights(read_package(given), written, role=graph.role)
        if ranges:
            found[graph.role] |= check_activations(written, ranges, role=graph.role)
        say(f"{graph.role}: {_mib(given):.2f} -> {_mib(out):.2f} MiB")
    return tuple(graphs), found


def compare_weights(before: Program, after: Program, *, role: str) -> dict[str, float]:
    """Every 8-bit constant beside the one that it was made of.

    Raises:
        ParityError: another shape, more than half a step away, or none at all in 8 bits.
    """
    floats = {name: value for name, value in before.constants.items() if isinstance(value, np.ndarray)}
    tensors, numbers, worst = 0, 0, 0.0
    for name, how in after.stored.items():
        if how != "int8":
            continue
        origin = next((key for key in (name, re.sub(r"_quantized$", "", name)) if key in floats), None)
        small = np.asarray(after.constants[name])
        if origin is None or floats[origin].shape != small.shape:
            raise ParityError(f"{role}: {name} in 8 bits is no weight of the float package")
        wanted = floats[origin].astype(np.float32)
        gap = np.abs(small - wanted) - _LEAST_HALF
        worst = max(worst, float((gap / np.maximum(after.steps[name], 1e-12)).max()))
        tensors, numbers = tensors + 1, numbers + small.size
    if not tensors:
        raise ParityError(f"{role}: coremltools stored nothing in 8 bits")
    if not worst <= 0.5 + _SLACK:
        raise ParityError(f"{role}: a weight is {worst:.2f} steps from what it was; rounding is at most 0.5")
    total = sum(value.size for value in floats.values() if value.dtype.kind == "f")
    return {"tensors": tensors, "numbers": round(numbers / total, 4), "largest_step": round(worst, 3)}


def _mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
