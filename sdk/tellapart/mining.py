"""Bags of look-alike images, mined from embeddings: for `truematch build` and for the trainer.

The procedure is the one proposed in section 5.1 of our method notes, after the public prototype of the
benchmark: near-duplicates are taken out first; then every image is an anchor, and its bag is itself and
others from a band of its ranking by cosine.

    hard    the size - 1 nearest; the bag with the largest sum of similarities is taken first
    medium  drawn from ranks 50 to 200
    easy    drawn from ranks 1000 and beyond

An image is in at most one bag of a size. Rows and indices in, indices out: nothing here knows what an
image is, and an index such as faiss comes in through the door as a `Neighbours` function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from tellapart.errors import ShapeError, UsageError
from tellapart.types import FloatArray, IntArray

__all__ = [
    "BANDS",
    "Band",
    "MinedBags",
    "Neighbours",
    "combined_rows",
    "exact_neighbours",
    "mine_bags",
    "near_duplicates",
]

Neighbours: TypeAlias = Callable[[FloatArray, int], IntArray]
"""(n, d) unit rows and a count c < n -> (n, c) indices of the nearest other rows by cosine, best first,
equal ones by lower index, oneself left out."""

Band: TypeAlias = Literal["hard", "medium", "easy"]
"""How alike the images of a bag are."""

BANDS: dict[Band, tuple[int, int | None]] = {"hard": (1, None), "medium": (50, 200), "easy": (1000, None)}
"""First and last rank of the others, 1 is the nearest. The last is size - 1 for "hard" and all for "easy"."""

_BLOCK_BYTES = 64 << 20
"""Most memory for one block of similarities."""

_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class MinedBags:
    """Bags of one size, and how they came about."""

    bags: tuple[tuple[int, ...], ...]
    """Row indices, the anchor first; no index comes twice. "hard": the hardest of a round first."""

    size: int
    band: Band
    ranks: tuple[int, int]
    """First and last rank that the others were taken from; smaller than `BANDS` where images are few, and
    for "hard" counted among the images of the round."""

    seed: int
    near_duplicate: float
    images: int
    """Rows that came in."""

    near_duplicates_removed: int
    images_used: int
    mean_similarity: float
    """Mean cosine over all pairs of images that share a bag; 0 without bags."""

    def to_record(self) -> dict[str, Any]:
        """The counts as plain JSON values, without the bags."""
        return {
            "size": self.size,
            "band": self.band,
            "ranks": list(self.ranks),
            "seed": self.seed,
            "near_duplicate": self.near_duplicate,
            "images": self.images,
            "near_duplicates_removed": self.near_duplicates_removed,
            "bags": len(self.bags),
            "images_used": self.images_used,
            "mean_similarity": round(self.mean_similarity, 6),
        }


def mine_bags(
    rows: FloatArray,
    *,
    size: int,
    band: Band = "hard",
    seed: int = 0,
    near_duplicate: float = 0.97,
    image_rows: FloatArray | None = None,
    max_bags: int | None = None,
    neighbours: Neighbours | None = None,
    rounds: int = 1,
) -> MinedBags:
    """Disjoint bags of look-alike images.

    Args:
        rows: (n, d) float32, unit rows; the likeness that bags are made by.
        size: images per bag, from 2.
        band: how alike; see the top of the module. With 200 other images or fewer "medium" draws from the
            farther three quarters of them, with fewer than 2000 "easy" from the farther half.
        seed: of the draws of "medium" and "easy"; "hard" draws nothing.
        near_duplicate: of images whose cosine in `image_rows` is above this, all but one stay out of
            every bag; 1 keeps all.
        image_rows: (n, e) float32, unit rows of the images alone; None takes `rows`. Captions are left out
            here, because two photos of one moment may have been described differently.
        max_bags: stop after so many; None takes all there are.
        neighbours: finds the nearest rows; None is `exact_neighbours`.
        rounds: for "hard": how often to mine again among the images that no bag holds yet, so that an image
            whose nearest were taken gets a bag of the nearest that are left; 1 mines once.

    Returns:
        The bags; equal arguments give equal bags.

    Raises:
        ShapeError: arrays that are not matrices of unit rows, or differ in length.
        UsageError: a size, band or limit that cannot be, or fewer images than a bag holds.
    """
    if band not in get_args(Band):
        raise UsageError(f"band must be one of {', '.join(get_args(Band))}, got {band!r}")
    if size < 2 or rounds < 1 or (max_bags is not None and max_bags < 1):
        raise UsageError(
            f"expected size from 2, max_bags and rounds from 1, got {size}, {max_bags} and {rounds}"
        )
    _check_unit(rows, "rows")
    seen = rows if image_rows is None else image_rows
    _check_unit(seen, "image_rows")
    if len(seen) != len(rows):
        raise ShapeError(f"expected as many image_rows as rows, got {len(seen)} and {len(rows)}")
    kept = np.flatnonzero(~near_duplicates(seen, threshold=near_duplicate))
    if len(kept) < size:
        raise UsageError(
            f"{len(kept)} images are left of {len(rows)} without near-duplicates, and a bag holds {size}; "
            "bring more images or raise near_duplicate"
        )
    rows = np.ascontiguousarray(rows[kept])
    ranks = _ranks(band, size, len(rows) - 1)
    find, generator = neighbours or exact_neighbours, np.random.default_rng(seed)
    if band == "hard":
        found = _hard_rounds(rows, size, find, rounds)
    elif band == "medium":
        found = _medium(find(rows, ranks[1])[:, ranks[0] - 1 :], size, generator)
    else:
        found = _easy(rows, size, ranks[0], generator)
    bags = []
    for bag in found:
        bags.append(bag)
        if len(bags) == max_bags:
            break
    return MinedBags(
        bags=tuple(tuple(int(kept[index]) for index in bag) for bag in bags),
        size=size,
        band=band,
        ranks=ranks,
        seed=seed,
        near_duplicate=near_duplicate,
        images=len(seen),
        near_duplicates_removed=len(seen) - len(kept),
        images_used=size * len(bags),
        mean_similarity=_mean_similarity(rows, bags),
    )


def exact_neighbours(rows: FloatArray, count: int) -> IntArray:
    """The nearest other rows of every row, by comparing all with all in blocks of bounded memory.

    Args:
        rows: (n, d) float32, unit rows.
        count: how many, from 1 to n - 1.

    Returns:
        (n, count) int64, best first, equal ones by lower index, oneself left out.

    Raises:
        UsageError: a count out of its range.
    """
    total = len(rows)
    if not 1 <= count < total:
        raise UsageError(f"count must be from 1 to {total - 1} for {total} rows, got {count}")
    nearest = np.empty((total, count), np.int64)
    for first, last in _blocks(total, total):
        scores = rows[first:last] @ rows.T
        scores[np.arange(last - first), np.arange(first, last)] = -np.inf
        least = np.partition(scores, total - count, axis=1)[:, total - count]
        for row in range(last - first):
            # All that reach the last place, in order of their index: a stable sort then settles ties.
            enough = np.flatnonzero(scores[row] >= least[row])
            order = np.argsort(-scores[row, enough], kind="stable")
            nearest[first + row] = enough[order[:count]]
    return nearest


def near_duplicates(rows: FloatArray, *, threshold: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows to leave out so that no two of the others are nearly the same.

    Rows are taken in order: one stays unless its cosine with an earlier one that stayed is above the
    threshold. So of a group of equals the first stays, and a long chain of small steps is not lost whole.

    Args:
        rows: (n, d) float32, unit rows.
        threshold: cosine, in (0, 1]; at 1 nothing is left out.

    Returns:
        (n,) bool, True is out.

    Raises:
        UsageError: a threshold out of its range.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"near_duplicate must be a cosine above 0 and at most 1, got {threshold}")
    out = np.zeros(len(rows), np.bool_)
    if threshold == 1:  # the cosine of a row with itself may round to a little more
        return out
    for first, last in _blocks(len(rows), len(rows)):
        alike = rows[first:last] @ rows[:last].T > threshold
        for row, earlier in np.argwhere(alike):  # sorted by row, so what came earlier is settled
            index = first + row
            if earlier < index and not out[earlier]:
                out[index] = True
    return out


def combined_rows(image_rows: FloatArray, caption_rows_mean: FloatArray) -> FloatArray:
    """Likeness by sight and by words: image embedding plus the mean of its captions', made unit length.

    Args:
        image_rows: (n, d) float32, unit rows.
        caption_rows_mean: (n, d) float32, mean of the unit rows of each image's captions, not made unit
            length: captions that disagree then count for less.

    Returns:
        (n, d) float32, unit rows.

    Raises:
        ShapeError: not of equal shape, or a sum that is zero or not finite.
    """
    if image_rows.ndim != 2 or image_rows.shape != caption_rows_mean.shape:
        raise ShapeError(
            f"expected two (n, d) arrays of one shape, got {image_rows.shape} and {caption_rows_mean.shape}"
        )
    total = image_rows.astype(np.float64) + caption_rows_mean
    length = np.linalg.norm(total, axis=1, keepdims=True)
    if not np.isfinite(length).all() or not (length > 0).all():
        raise ShapeError("an image and its captions cancel out or are not finite; look at the embeddings")
    return np.asarray(total / length, np.float32)


def _hard(rows: FloatArray, nearest: IntArray) -> Iterator[list[int]]:
    """Anchor and nearest, by falling sum of similarities; a bag with a used image is passed over."""
    scores = np.empty(len(rows))
    width = rows.shape[1] * nearest.shape[1]
    for first, last in _blocks(len(rows), width):
        others = rows[nearest[first:last]].astype(np.float64)  # (b, size - 1, d)
        scores[first:last] = np.einsum("bkd,bd->b", others, rows[first:last].astype(np.float64))
    used = np.zeros(len(rows), np.bool_)
    for anchor in np.argsort(-scores, kind="stable"):
        bag = [int(anchor), *nearest[anchor].tolist()]
        if not used[bag].any():
            used[bag] = True
            yield bag


def _hard_rounds(rows: FloatArray, size: int, find: Neighbours, rounds: int) -> Iterator[list[int]]:
    """Hard bags of all rows, then of those without a bag, and so on."""
    left = np.arange(len(rows))
    for _ in range(rounds):
        if len(left) < size:
            return
        among = np.ascontiguousarray(rows[left])
        taken: list[int] = []
        for bag in _hard(among, find(among, size - 1)):
            taken += bag
            yield left[bag].tolist()
        left = np.delete(left, taken)


def _medium(band: IntArray, size: int, generator: np.random.Generator) -> Iterator[list[int]]:
    """Anchors in drawn order, each with others drawn from what is left of its band, (n, width)."""
    used = np.zeros(len(band), np.bool_)
    for anchor in generator.permutation(len(band)):
        left = band[anchor][~used[band[anchor]]]
        if used[anchor] or len(left) < size - 1:
            continue
        bag = [int(anchor), *generator.choice(left, size - 1, replace=False).tolist()]
        used[bag] = True
        yield bag


def _easy(
    rows: FloatArray, size: int, first_rank: int, generator: np.random.Generator
) -> Iterator[list[int]]:
    """As `_medium`; the band is nearly everything, so it is found anchor by anchor and never kept."""
    used = np.zeros(len(rows), np.bool_)
    order = generator.permutation(len(rows))
    for first, last in _blocks(len(rows), len(rows)):
        anchors = order[first:last][~used[order[first:last]]]
        scores = rows[anchors] @ rows.T
        scores[np.arange(len(anchors)), anchors] = np.inf  # place 0 of the ranking, never drawn
        for anchor, row in zip(anchors, scores, strict=True):
            far = np.argpartition(-row, first_rank - 1)[first_rank:]
            left = np.sort(far[~used[far]])
            if used[anchor] or len(left) < size - 1:
                continue
            bag = [int(anchor), *generator.choice(left, size - 1, replace=False).tolist()]
            used[bag] = True
            yield bag


def _ranks(band: Band, size: int, others: int) -> tuple[int, int]:
    """First and last rank of the others that a bag may hold, of `others` there are."""
    low, high = BANDS[band]
    if band == "hard":
        return low, size - 1
    if band == "medium" and high is not None and others <= high:
        low, high = others // 4 + 1, others
    if band == "easy" and others < 2 * low:
        low = others // 2 + 1
    high = others if high is None else high
    if high - low + 1 < size - 1:
        raise UsageError(
            f"{others} other images are too few for {band} bags of {size}; bring more, or mine hard bags"
        )
    return low, high


def _mean_similarity(rows: FloatArray, bags: list[list[int]]) -> float:
    if not bags:
        return 0.0
    size = len(bags[0])
    total = 0.0
    for bag in bags:
        # The square of the sum holds every pair twice and every row with itself once.
        summed = rows[bag].astype(np.float64).sum(axis=0)
        total += float(summed @ summed) - float((rows[bag].astype(np.float64) ** 2).sum())
    return total / (len(bags) * size * (size - 1))


def _blocks(total: int, width: int) -> Iterator[tuple[int, int]]:
    """Borders of blocks of rows, so that a block of `width` float32 per row stays within memory."""
    step = max(1, _BLOCK_BYTES // (4 * max(width, 1)))
    for first in range(0, total, step):
        yield first, min(first + step, total)


def _check_unit(rows: FloatArray, name: str) -> None:
    if rows.ndim != 2 or not len(rows) or not np.issubdtype(rows.dtype, np.floating):
        raise ShapeError(f"{name} must be (n, d) float with n > 0, got {rows.shape} {rows.dtype}")
    length = np.linalg.norm(rows, axis=1)
    if not (np.abs(length - 1.0) <= _UNIT_TOLERANCE).all():  # also where it is not a number
        worst = int(np.argmax(np.abs(length - 1.0)))
        raise ShapeError(f"{name} must have unit length, row {worst} has {length[worst]:.4g}")
