"""Which blocks of the trunk spoil its features most in 8 bits, and what each costs to keep in float."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from tellapart.types import FloatArray, PixelArray
from tellapart_quantization.calibration import Range
from tellapart_quantization.features import model_features
from tellapart_quantization.int8_onnx import PLAIN, TrunkForm, quantize_trunk, trunk_blocks

LEAST_GAIN = 0.05
"""A block stays in float only if the error falls by this share of itself."""

_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The trunk with one more block in float."""

    block: str
    """"" is the trunk with nothing in float."""

    error: float
    """Norm of the features' change, as a share of the norm of the features."""

    size_mib: float
    """Size of the vision graph."""


def scan_blocks(
    model: Any,
    ranges: Mapping[str, Range],
    pixels: PixelArray,
    *,
    kept: Collection[str] = (),
    form: TrunkForm = PLAIN,
) -> list[Sensitivity]:
    """Error of the features with each block in turn left in float.

    Args:
        model: the float graph, its nodes named.
        ranges: see `quantize_trunk`.
        pixels: (n, s, s, 3) uint8, photos that were not calibrated on.
        kept: blocks in float in every row.
        form: see `quantize_trunk`.

    Returns:
        First with no further block, then one entry per block in the order of the pass.
    """
    wanted = model_features(model)(pixels)
    rows = ["", *(block for block in trunk_blocks(model) if block not in kept)]
    found = []
    for block in rows:
        quantized = quantize_trunk(
            model, ranges, keep_float=[*kept, block] if block else list(kept), form=form
        )
        found.append(
            Sensitivity(block, _error(model_features(quantized), pixels, wanted), quantized.ByteSize() / _MIB)
        )
    return found


def choose_float_blocks(
    model: Any,
    ranges: Mapping[str, Range],
    pixels: PixelArray,
    *,
    most: int,
    form: TrunkForm = PLAIN,
    say: Callable[[str], None] = lambda line: None,
    scan: list[dict[str, Any]] | None = None,
) -> list[str]:
    """Blocks worth keeping in float, the most useful first: after each choice the rest are measured again.

    Args:
        model: the float graph.
        ranges: see `quantize_trunk`.
        pixels: see `scan_blocks`.
        most: how many at most.
        form: see `quantize_trunk`.
        say: told every row that was measured.
        scan: gets every row as JSON values: {"float", "error", "size_mib"}.
    """
    kept: list[str] = []
    while len(kept) < most:
        base, *rows = scan_blocks(model, ranges, pixels, kept=kept, form=form)
        for row in (base, *rows):
            if scan is not None:
                blocks = [*kept, row.block] if row.block else list(kept)
                entry = {"float": blocks, "error": round(row.error, 5), "size_mib": round(row.size_mib, 3)}
                scan.append(entry)
            say(
                f"float {'+'.join([*kept, row.block]) or 'nothing'}: error {row.error:.4f}, "
                f"{row.size_mib:.2f} MiB"
            )
        best = min(rows, key=lambda row: row.error)
        if best.error > base.error * (1 - LEAST_GAIN):
            break
        kept.append(best.block)
    return kept


def _error(features: Callable[[PixelArray], FloatArray], pixels: PixelArray, wanted: FloatArray) -> float:
    return float(np.linalg.norm(features(pixels) - wanted) / np.linalg.norm(wanted))
