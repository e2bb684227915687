"""Who finds whom: cosines, ranks, margins and recall over plain arrays.

Rows ask and columns answer: in a bag row i is caption i and column i its own image. A tie is never settled
by the order of the columns; the caller says how it counts:

    strict      the other one wins: a caption that fits two images equally tells nothing apart
    optimistic  the own one wins: the published TrueMatch protocol
    expected    the chance of drawing the own one among those that tie
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tellapart.errors import ShapeError, UsageError
from tellapart.types import FloatArray

TieRule: TypeAlias = Literal["strict", "optimistic", "expected"]
"""How an equal score of another column counts."""

TIE_RULES: tuple[TieRule, ...] = ("strict", "optimistic", "expected")

RealArray: TypeAlias = npt.NDArray[np.float64]
"""float64 array; the docstring at hand gives its shape."""


def cosine(rows: npt.NDArray[Any], columns: npt.NDArray[Any]) -> FloatArray:
    """Cosine of each row of the one with each row of the other.

    Args:
        rows: (n, d) float, of any length each; a row of zeros is like nothing, its cosines are 0.
        columns: (m, d) float, likewise.

    Returns:
        (n, m) float32 in [-1, 1].

    Raises:
        ShapeError: not two matrices of equal width, or a value that is not finite.
    """
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ShapeError(f"cosine needs (n, d) and (m, d), got {rows.shape} and {columns.shape}")
    product = np.asarray(_unit(rows) @ _unit(columns).T, dtype=np.float32)
    return np.clip(product, -1.0, 1.0)


def rank_of_own(similarity: npt.NDArray[Any], *, ties: TieRule = "strict") -> RealArray:
    """Place of each row's own column when its columns are sorted, best first.

    Args:
        similarity: (k, k) float, row = caption, column = image, higher is more alike.
        ties: where the own column stands among equals: "strict" last, "optimistic" first, "expected" in
            the middle.

    Returns:
        (k,) float64, 1 is best; whole numbers but for "expected".

    Raises:
        ShapeError: not square, fewer than two rows, or NaN.
        UsageError: an unknown tie rule.
    """
    _check_square(similarity)
    _check_ties(ties)
    own = np.diagonal(similarity)[:, None]
    better = (similarity > own).sum(axis=1)
    equal = (similarity == own).sum(axis=1) - 1  # less itself
    share = {"strict": 1.0, "optimistic": 0.0, "expected": 0.5}[ties]
    return np.asarray(1.0 + better + share * equal, np.float64)


def margins(similarity: npt.NDArray[Any]) -> RealArray:
    """By how much each row prefers its own column to the best other one.

    Args:
        similarity: (k, k) float, row = caption, column = image.

    Returns:
        (k,) float64, own minus best other; above 0 is told apart, 0 is a tie.

    Raises:
        ShapeError: not square, fewer than two rows, or NaN.
    """
    _check_square(similarity)
    others = similarity.astype(np.float64)
    own = np.diagonal(others).copy()
    np.fill_diagonal(others, -np.inf)
    return np.asarray(own - others.max(axis=1))


def hits_at_1(similarity: npt.NDArray[Any], *, ties: TieRule = "strict") -> RealArray:
    """Whether each caption picks its own image out of its bag.

    Args:
        similarity: (k, k) float, row = caption, column = image, cosine in [-1, 1].
        ties: how an equal best image counts: "optimistic" a hit, as in the published protocol; "strict" a
            miss; "expected" the chance of drawing the right one.

    Returns:
        (k,) float64 in [0, 1]; their mean is recall@1 of the bag.

    Raises:
        ShapeError: not square, fewer than two rows, or NaN.
        UsageError: an unknown tie rule.
    """
    _check_square(similarity)
    return hits_at_k(similarity, np.eye(len(similarity), dtype=np.bool_), k=1, ties=ties)


def hits_at_k(
    similarity: npt.NDArray[Any], relevant: npt.NDArray[np.bool_], *, k: int, ties: TieRule = "strict"
) -> RealArray:
    """Whether each row has a right column among its k best.

    Args:
        similarity: (n, m) float, higher is more alike.
        relevant: (n, m) bool, True where the column is a right answer to the row; one or more in each row.
        k: how many columns a row may name, from 1.
        ties: as in `hits_at_1`; "expected" is the chance that at least one right column is drawn when the
            places that are left among equals are dealt at random.

    Returns:
        (n,) float64 in [0, 1]; their mean is recall@k.

    Raises:
        ShapeError: the two do not match, a row has no right answer, or NaN.
        UsageError: k below 1, or an unknown tie rule.
    """
    _check_ties(ties)
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if similarity.ndim != 2 or similarity.shape != relevant.shape or relevant.dtype != np.bool_:
        raise ShapeError(
            f"expected a (n, m) similarity and (n, m) bool, got {similarity.shape} {similarity.dtype} "
            f"and {relevant.shape} {relevant.dtype}"
        )
    _check_numbers(similarity)
    if not relevant.any(axis=1).all():
        raise ShapeError(f"row {int(np.argmin(relevant.any(axis=1)))} has no right column; drop it first")
    best = np.where(relevant, similarity, -np.inf).max(axis=1)[:, None]
    better = (similarity > best).sum(axis=1)
    wrong = ((similarity == best) & ~relevant).sum(axis=1)
    if ties == "strict":
        return np.asarray(better + wrong < k, np.float64)
    if ties == "optimistic":
        return np.asarray(better < k, np.float64)
    right = ((similarity == best) & relevant).sum(axis=1)
    chances = [_chance(int(w), int(r), k - int(b)) for w, r, b in zip(wrong, right, better, strict=True)]
    return np.array(chances, dtype=np.float64)


def recall_at_k(
    similarity: npt.NDArray[Any], own: npt.NDArray[Any], *, k: int, ties: TieRule = "strict"
) -> float:
    """Share of rows that find a right column among their k best.

    Args:
        similarity: (n, m) float, higher is more alike.
        own: (n,) int, the right column of each row; or (n, m) bool where a row has several.
        k: how many columns a row may name, from 1.
        ties: as in `hits_at_k`.

    Returns:
        A share in [0, 1].

    Raises:
        ShapeError: arrays that do not match, no rows, a column that is not there, or NaN.
        UsageError: k below 1, or an unknown tie rule.

    Example:
        >>> scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]])
        >>> recall_at_k(scores, np.array([0, 1]), k=1), recall_at_k(scores, np.array([0, 1]), k=2)
        (0.5, 1.0)
    """
    if similarity.ndim != 2 or not len(similarity):
        raise ShapeError(f"recall needs a (n, m) similarity with rows, got {similarity.shape}")
    if own.dtype != np.bool_:
        count = similarity.shape[1]
        if own.shape != similarity.shape[:1] or not np.issubdtype(own.dtype, np.integer):
            raise ShapeError(
                f"own must be {similarity.shape[:1]} int or {similarity.shape} bool, "
                f"got {own.shape} {own.dtype}"
            )
        if own.min() < 0 or own.max() >= count:
            raise ShapeError(f"own names columns {own.min()} to {own.max()}, and there are {count}")
        own = np.arange(count) == own[:, None]
    return float(hits_at_k(similarity, own, k=k, ties=ties).mean())


def _unit(rows: npt.NDArray[Any]) -> FloatArray:
    # Scaled by the largest value first: squares of very large or small numbers leave float range.
    wide = rows.astype(np.float64)
    if not np.isfinite(wide).all():
        raise ShapeError("cosine needs finite numbers, got NaN or infinity")
    largest = np.abs(wide).max(axis=1, keepdims=True, initial=0.0)
    wide = wide / np.where(largest > 0, largest, 1.0)
    length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return np.asarray(wide / np.where(length > 0, length, 1.0), np.float32)


def _chance(wrong: int, right: int, places: int) -> float:
    """Chance that `places` draws from `wrong` + `right` equals hold at least one right one."""
    if places <= 0:
        return 0.0
    return 1.0 - math.comb(wrong, places) / math.comb(wrong + right, min(places, wrong + right))


def _check_ties(ties: str) -> None:
    if ties not in TIE_RULES:
        raise UsageError(f"ties must be one of {', '.join(TIE_RULES)}, got {ties!r}")


def _check_square(similarity: npt.NDArray[Any]) -> None:
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or len(similarity) < 2:
        raise ShapeError(
            f"expected a square similarity of two or more captions and images, got {similarity.shape}"
        )
    _check_numbers(similarity)


def _check_numbers(similarity: npt.NDArray[Any]) -> None:
    if np.isnan(similarity).any():
        raise ShapeError("a similarity holds NaN, which compares with nothing; look at the embeddings")
