"""The FAISS search gives what the exact one gives, ties included."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tellapart.errors import MissingExtraError, UsageError
from tellapart.mining import exact_neighbours
from tellapart.types import FloatArray
from tellapart_training.neighbours import FAISS_ABOVE, choose_neighbours, faiss_neighbours


def _unit_rows(count: int, width: int) -> FloatArray:
    rows = np.random.default_rng(3).normal(size=(count, width)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize("count", [1, 6, 299])
def test_faiss_equals_the_exact_search(count: int) -> None:
    pytest.importorskip("faiss")
    rows = _unit_rows(300, 24)
    np.testing.assert_array_equal(faiss_neighbours(rows, count), exact_neighbours(rows, count))


class LastOfEquals:
    """As FAISS's flat index may be: the order of equal scores is its own, here the highest index first."""

    def __init__(self, width: int) -> None:
        self.rows = np.empty((0, width), np.float32)

    def add(self, rows: FloatArray) -> None:
        self.rows = rows

    def search(self, asked: FloatArray, count: int) -> tuple[FloatArray, Any]:
        scores = asked @ self.rows.T
        order = len(self.rows) - 1 - np.argsort(-scores[:, ::-1], axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("real", [True, False])
def test_equal_rows_come_by_their_index(real: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if real:
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(IndexFlatIP=LastOfEquals))
    # 60 copies of each of two axes: more equals than the spare candidates hold.
    rows = np.repeat(np.eye(2, 8, dtype=np.float32), 60, axis=0)[np.random.default_rng(0).permutation(120)]
    found = faiss_neighbours(rows, 5)
    for row in range(120):
        equal = [other for other in range(120) if other != row and rows[other] @ rows[row] == 1]
        assert found[row].tolist() == equal[:5]


def test_the_size_decides_between_the_two() -> None:
    assert choose_neighbours("auto", FAISS_ABOVE) is exact_neighbours
    assert choose_neighbours("auto", FAISS_ABOVE + 1) is faiss_neighbours
    assert choose_neighbours("exact", 10**6) is exact_neighbours
    assert choose_neighbours("faiss", 3) is faiss_neighbours
    with pytest.raises(UsageError, match="auto, exact, faiss"):
        choose_neighbours("annoy", 3)


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"tellapart\[train\]"):
        faiss_neighbours(_unit_rows(4, 2), 1)
    monkeypatch.undo()
    pytest.importorskip("faiss")
    with pytest.raises(UsageError, match="1 to 3"):
        faiss_neighbours(_unit_rows(4, 2), 4)
