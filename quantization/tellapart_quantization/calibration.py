"""What values do the tensors of a graph take on real photos: one pass, one histogram per tensor.

The photos come through the device's own preprocessing. Memory does not grow with their number: a batch is
counted into the histograms and dropped. The same photos give the same ranges, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from tellapart.errors import DataError
from tellapart_quantization.surgery import cut

BINS = 4096
"""Bins of a histogram that is symmetric round zero; even, so that no bin crosses zero."""

_LARGE, _STRIDE = 200_000, 5  # an odd step, so that every column of a feature map is met

Range = tuple[float, float]
"""Lowest and highest value to represent; the one at most 0, the other at least 0."""


class Histogram:
    """Counts of a tensor's values over all batches, on an axis that doubles when a value falls outside."""

    def __init__(self) -> None:
        """Start empty."""
        self.edge = 0.0
        self.lowest, self.highest = 0.0, 0.0
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS, np.int64)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Take in an array: the ends of all its values, and counts, of an even sample if it is large."""
        low, high = float(values.min()), float(values.max())
        reach = max(-low, high, 1e-9)
        if not np.isfinite(reach):
            raise DataError("calibration: a tensor holds NaN or infinity; the bundle's weights are damaged")
        if self.edge == 0.0:
            # A power of two: positions of bins are then exact, whatever came first.
            self.edge = float(2.0 ** np.ceil(np.log2(reach)))
        while reach > self.edge:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : 3 * BINS // 4] = pairs
            self.edge *= 2
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        counted = values.ravel()[:: _STRIDE if values.size > _LARGE else 1]
        places = ((counted + np.float32(self.edge)) * np.float32(BINS / 2 / self.edge)).astype(np.int32)
        self.counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)

    def percentile_range(self, percentile: float) -> Range:
        """Leave out the same share at both ends, but nothing that no value reached.

        Args:
            percentile: in (50, 100]; 100 is the whole range.
        """
        if percentile >= 100:
            return self.lowest, self.highest
        share = np.cumsum(self.counts) / self.counts.sum()
        edges = np.linspace(-self.edge, self.edge, BINS + 1)
        low = edges[np.searchsorted(share, 1 - percentile / 100)]
        high = edges[np.searchsorted(share, percentile / 100) + 1]
        return min(max(float(low), self.lowest), 0.0), max(min(float(high), self.highest), 0.0)


def find_ranges(
    model: Any, tensors: Iterable[str], feeds: Iterable[Mapping[str, npt.NDArray[Any]]], *, percentile: float
) -> dict[str, Range]:
    """Ranges of some float32 tensors of a graph.

    Args:
        model: the float graph, its nodes named.
        tensors: names of tensors inside it.
        feeds: its inputs, batch by batch.
        percentile: see `Histogram.percentile_range`.

    Raises:
        DataError: no feeds.
    """
    names = list(tensors)
    histograms = {name: Histogram() for name in names}
    session = open_model(cut(model, names))
    count = 0
    for feed in feeds:
        for name, values in zip(names, session.run(names, dict(feed)), strict=True):
            histograms[name].add(values)
        count += 1
    if not count:
        raise DataError("calibration needs at least one photo, got none")
    return {name: histogram.percentile_range(percentile) for name, histogram in histograms.items()}


def open_model(model: Any) -> Any:
    """An onnxruntime session of a graph in memory, on the CPU, without idle threads that spin."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
