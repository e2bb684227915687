"""Plots of a TrueMatch page as inline SVG: numbers in, text out; colours come from the page's style.

Classes that the style must know: `own` and `other` (fill); `whisker`, `chance`, `axis` (stroke); `soft` and
`figure` (text).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from tellapart.similarity import RealArray

__all__ = ["RecallBar", "hits_chart", "margin_chart", "recall_chart"]

_LEFT, _TRACK, _RIGHT, _ROW = 76, 500, 84, 44
_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_FOOT = 320, 120, 36
_MARGIN_BINS = 12  # on each side of zero, so that no column mixes hits and misses


@dataclass(frozen=True)
class RecallBar:
    """One line of the recall plot; all shares in [0, 1]."""

    label: str
    value: float
    low: float
    high: float
    chance: float
    optimistic: float


def recall_chart(bars: Sequence[RecallBar]) -> str:
    """Bars of recall@1 with their intervals, and a dashed mark at chance.

    Args:
        bars: from the top.

    Returns:
        An `svg` element.
    """
    height = _ROW * len(bars) + 30
    parts = []
    for tick in (0, 25, 50, 75, 100):
        x = _LEFT + _TRACK * tick / 100
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 24}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{tick} %</text>')
    for place, bar in enumerate(bars):
        top, middle = _ROW * place + 10, _ROW * place + 23
        value, low, high, chance, optimistic = (
            _LEFT + _TRACK * share for share in (bar.value, bar.low, bar.high, bar.chance, bar.optimistic)
        )
        parts.append(f'<text x="{_LEFT - 10}" y="{middle + 5}" text-anchor="end">{escape(bar.label)}</text>')
        parts.append(
            f'<rect class="own" x="{_LEFT}" y="{top}" width="{value - _LEFT:.1f}" height="26" rx="4"/>'
        )
        parts.append(
            f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 6}v12'
            f'M{high:.1f} {middle - 6}v12"/>'
        )
        parts.append(
            f'<line class="chance" x1="{chance:.1f}" x2="{chance:.1f}" y1="{top - 5}" y2="{top + 31}"/>'
        )
        if bar.optimistic > bar.value:
            parts.append(f'<circle class="whisker" cx="{optimistic:.1f}" cy="{middle}" r="4"/>')
        at = max(value, high) + 8
        parts.append(f'<text class="figure" x="{at:.1f}" y="{middle + 5}">{100 * bar.value:.1f} %</text>')
    told = "; ".join(
        f"{bar.label} {100 * bar.value:.1f} %, 95 % interval {100 * bar.low:.1f} to {100 * bar.high:.1f}, "
        f"chance {100 * bar.chance:.1f}"
        for bar in bars
    )
    return _svg(_LEFT + _TRACK + _RIGHT, height, f"Recall at 1: {told}", parts)


def hits_chart(hits: RealArray) -> str:
    """How many bags have none, one, ... or all of their captions right.

    Args:
        hits: (m, k) float in [0, 1]; a half hit, a tie under "expected", counts as none here.

    Returns:
        An `svg` element.
    """
    bags, size = hits.shape
    counts = np.bincount((hits >= 1.0).sum(axis=1), minlength=size + 1)
    kinds = ["other"] * size + ["own"]
    labels = [str(right) for right in range(size + 1)]
    told = ", ".join(f"{count} with {right}" for right, count in enumerate(counts))
    return _columns(counts, kinds, labels, f"Of {bags} bags by captions right: {told}", numbers=True)


def margin_chart(margins: RealArray) -> str:
    """How far each caption's own photo is ahead of the best other one.

    Args:
        margins: (n,) float, own cosine minus the best other one; above 0 is a hit.

    Returns:
        An `svg` element; columns left of the middle are misses and ties.
    """
    reach = float(np.abs(margins).max()) or 1.0
    edges = np.linspace(0.0, reach, _MARGIN_BINS + 1)
    right = np.histogram(margins[margins > 0], edges)[0]
    left = np.histogram(-margins[margins <= 0], edges)[0][::-1]
    counts = np.concatenate([left, right])
    kinds = ["other"] * _MARGIN_BINS + ["own"] * _MARGIN_BINS
    labels = [""] * (2 * _MARGIN_BINS)
    labels[0], labels[_MARGIN_BINS], labels[-1] = f"{-reach:.2f}", "0", f"+{reach:.2f}"
    told = (
        f"Margins from {float(margins.min()):.3f} to {float(margins.max()):.3f}, {int(right.sum())} above 0"
    )
    return _columns(counts, kinds, labels, told, numbers=False)


def _columns(
    counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    kinds: Sequence[str],
    labels: Sequence[str],
    told: str,
    *,
    numbers: bool,
) -> str:
    """Columns side by side, each with a label below and, where asked, its number above."""
    step, most = _PLOT_WIDTH / len(counts), max(int(counts.max()), 1)
    parts = []
    for place, (count, kind, label) in enumerate(zip(counts, kinds, labels, strict=True)):
        tall = _PLOT_HEIGHT * int(count) / most
        x, y = step * place, 18 + _PLOT_HEIGHT - tall
        parts.append(
            f'<rect class="{kind}" x="{x + 1.5:.1f}" y="{y:.1f}" width="{step - 3:.1f}" height="{tall:.1f}" '
            'rx="2"/>'
        )
        # The zero of the margins stands at the border of two columns, other labels under their own.
        middle = x if label == "0" and not numbers else x + step / 2
        anchor = "middle"
        if not numbers and place in (0, len(counts) - 1):
            middle, anchor = (0.0, "start") if place == 0 else (float(_PLOT_WIDTH), "end")
        if label:
            place_of = f'x="{middle:.1f}" y="{_PLOT_HEIGHT + 36}" text-anchor="{anchor}"'
            parts.append(f'<text class="soft" {place_of}>{label}</text>')
        if numbers and count:
            parts.append(f'<text x="{x + step / 2:.1f}" y="{y - 5:.1f}" text-anchor="middle">{count}</text>')
    base = 18.5 + _PLOT_HEIGHT
    parts.append(f'<line class="axis" x1="0" x2="{_PLOT_WIDTH}" y1="{base}" y2="{base}"/>')
    return _svg(_PLOT_WIDTH, _PLOT_HEIGHT + 18 + _PLOT_FOOT - 12, told, parts)


def _svg(width: float, height: float, told: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(told)}">\n{body}\n</svg>'
