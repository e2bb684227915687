"""The trunk's features as a device computes them: what heads are tuned on, and looked at for sensitivity.

The 8-bit trunk of two bundles is the same, bit for bit, when their trunk weights, calibration photos and
scheme are: heads tuned on these features can be exported and quantized again, and find the same features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from tellapart.bundle import Bundle, open_bundle
from tellapart.errors import UsageError
from tellapart.types import FloatArray, PixelArray
from tellapart_quantization.calibration import open_model
from tellapart_quantization.surgery import FEATURES, cut, name_nodes


def feature_session(bundle: Bundle | Path) -> Callable[[PixelArray], FloatArray]:
    """A function from pixels to the features that the heads of a bundle see.

    Args:
        bundle: a bundle of any precision whose vision graph has a tensor named `FEATURES`.

    Returns:
        pixels (b, s, s, 3) uint8 -> (b, N, C) float32.

    Raises:
        BundleError: no vision graph for ONNX, or the bundle is damaged.
        UsageError: no such tensor inside.
    """
    if isinstance(bundle, Path):
        with open_bundle(bundle) as opened:
            return feature_session(opened)
    model = onnx.load_model_from_string(bundle.read_bytes(bundle.graph("vision").file))
    name_nodes(model)
    if not any(FEATURES in node.output for node in model.graph.node):
        raise UsageError(f"{bundle.name}: the vision graph has no tensor {FEATURES!r}; export it again")
    return model_features(model)


def model_features(model: Any) -> Callable[[PixelArray], FloatArray]:
    """As `feature_session`, for a graph in memory whose nodes have names."""
    session = open_model(cut(model, [FEATURES]))

    def run(pixels: PixelArray) -> FloatArray:
        found: list[npt.NDArray[Any]] = session.run([FEATURES], {"pixels": pixels})
        return found[0]

    return run
