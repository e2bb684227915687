"""Nearest neighbours through FAISS, for image sets that are large for numpy; equal to the exact search.

A flat index compares all with all as `tellapart.mining.exact_neighbours` does, and uses all cores; on one
core 20,000 rows of 256 took 10 s for 16 s. It is not told to approximate: a bag mined twice must be the same
bag, whatever was installed.
"""

from __future__ import annotations

import numpy as np

from tellapart.errors import MissingExtraError, UsageError
from tellapart.mining import Neighbours, exact_neighbours
from tellapart.types import FloatArray, IntArray

INDEXES = ("auto", "exact", "faiss")
FAISS_ABOVE = 20_000
"""Rows above which "auto" takes FAISS; the exact search takes about a minute from twice as many."""

# Candidates beyond those asked for: FAISS leaves the order of equal scores open, and so who is last.
_SPARE = 16
_BLOCK = 4096


def choose_neighbours(index: str, rows: int) -> Neighbours:
    """The search to mine with.

    Args:
        index: "exact", "faiss", or "auto": FAISS above `FAISS_ABOVE` rows.
        rows: how many there are.

    Raises:
        UsageError: an unknown name.
    """
    if index not in INDEXES:
        raise UsageError(f"index must be one of {', '.join(INDEXES)}, got {index!r}")
    by_faiss = index == "faiss" or (index == "auto" and rows > FAISS_ABOVE)
    return faiss_neighbours if by_faiss else exact_neighbours


def faiss_neighbours(rows: FloatArray, count: int) -> IntArray:
    """The nearest other rows of every row, found by a flat FAISS index.

    Args:
        rows: (n, d) float32, unit rows.
        count: how many, from 1 to n - 1.

    Returns:
        (n, count) int64, best first, equal ones by lower index, oneself left out.

    Raises:
        MissingExtraError: FAISS is not installed.
        UsageError: a count out of its range.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingExtraError("train", "this index needs faiss, which is not installed") from error

    total = len(rows)
    if not 1 <= count < total:
        raise UsageError(f"count must be from 1 to {total - 1} for {total} rows, got {count}")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    nearest = np.empty((total, count), np.int64)
    for first in range(0, total, _BLOCK):
        block = np.arange(first, min(first + _BLOCK, total))
        wanted = min(total, count + 1 + _SPARE)
        while True:
            scores, found = index.search(rows[block], wanted)
            # Where the last candidate ties with the last place, an equal of lower index may be missing.
            if wanted == total or (scores[:, -1] < scores[:, count]).all():
                break
            wanted = min(total, 2 * wanted)
        scores = np.where(found == block[:, None], -np.inf, scores)
        order = np.lexsort((found, -scores), axis=1)
        nearest[block] = np.take_along_axis(found, order, axis=1)[:, :count]
    return nearest
