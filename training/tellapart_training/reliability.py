"""Whether chances are what they say: expected calibration error, and the diagram of it."""

from __future__ import annotations

from html import escape

import numpy as np
import numpy.typing as npt

from tellapart.errors import DataError

FloatArray = npt.NDArray[np.float64]
_BINS = 10


def bins_of(chances: FloatArray, truth: FloatArray) -> list[tuple[float, float, float]]:
    """Ten bins of equal width: (mean chance, mean truth, share of examples) of each that holds any.

    Args:
        chances: (n,) in [0, 1].
        truth: (n,) in [0, 1], 1 where it came true; shares count as such.

    Raises:
        DataError: nothing, or lengths that differ.
    """
    if not len(chances) or len(chances) != len(truth):
        raise DataError(f"expected as many chances as outcomes, got {len(chances)} and {len(truth)}")
    places = np.minimum((chances * _BINS).astype(np.int64), _BINS - 1)
    return [
        (float(chances[inside].mean()), float(truth[inside].mean()), float(inside.mean()))
        for inside in (places == place for place in range(_BINS))
        if inside.any()
    ]


def expected_calibration_error(chances: FloatArray, truth: FloatArray) -> float:
    """Mean over examples of the gap between chance and truth in their bin, in [0, 1]; see `bins_of`."""
    return sum(share * abs(chance - true) for chance, true, share in bins_of(chances, truth))


def reliability_svg(chances: FloatArray, truth: FloatArray, *, title: str) -> str:
    """The diagram: truth over chance, a dot a bin with its share of the examples, the diagonal is perfect."""
    side, left, top = 300, 50, 40
    error = expected_calibration_error(chances, truth)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side + 80} {side + 100}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>Reliability of the confidence on {escape(title)}</title>",
        f'<rect width="{side + 80}" height="{side + 100}" fill="#fff"/>',
        f'<text x="{left}" y="22">{escape(title)}: expected calibration error {error:.3f}</text>',
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#888"/>',
        f'<path d="M{left} {top + side}L{left + side} {top}" stroke="#bbb" stroke-dasharray="4"/>',
    ]
    for tick in (0.0, 0.5, 1.0):
        x, y = left + tick * side, top + (1 - tick) * side
        lines.append(f'<text x="{x:g}" y="{top + side + 16}" text-anchor="middle">{tick:g}</text>')
        lines.append(f'<text x="{left - 8}" y="{y + 4:g}" text-anchor="end">{tick:g}</text>')
    for chance, true, share in bins_of(chances, truth):
        x, y = left + chance * side, top + (1 - true) * side
        lines.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 14 * share**0.5:.1f}" '
            'fill="#2563eb" fill-opacity="0.6">'
            f"<title>said {chance:.2f}, was {true:.2f}, {share:.0%} of captions</title></circle>"
        )
    lines.append(f'<text x="{left + side / 2}" y="{top + side + 36}" text-anchor="middle">confidence</text>')
    lines.append(
        f'<text x="14" y="{top + side / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {top + side / 2})">share that found their photo</text>'
    )
    return "\n".join([*lines, "</svg>"]) + "\n"
