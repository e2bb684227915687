"""Scores by hand, and properties over random bags; sums by plain Python are the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tellapart.errors import ShapeError, UsageError
from tellapart.similarity import cosine, hits_at_1, hits_at_k, margins, rank_of_own, recall_at_k

# Caption 0 finds its image alone, caption 1 ties with image 0, caption 2 finds image 1.
BAG = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.8, 0.7]], np.float32)


def test_cosine_is_the_dot_product_of_unit_rows(generator: np.random.Generator) -> None:
    rows, columns = generator.normal(size=(3, 5)), generator.normal(size=(4, 5))
    found = cosine(rows, columns)
    for i, j in np.ndindex(3, 4):
        dot = math.fsum(float(a) * float(b) for a, b in zip(rows[i], columns[j], strict=True))
        assert found[i, j] == pytest.approx(dot / (math.hypot(*rows[i]) * math.hypot(*columns[j])), abs=1e-6)
    assert found.dtype == np.float32


def test_cosine_stays_in_range_and_takes_any_length() -> None:
    rows = np.array([[1e-30, 1e-30], [1e30, 1e30], [0, 0]], np.float32)
    assert cosine(rows, rows) == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]]), abs=1e-6)
    assert cosine(rows, rows).max() <= 1
    assert cosine(rows[:0], rows).shape == (0, 3)


@pytest.mark.parametrize("rows", [np.zeros(3), np.zeros((2, 4)), np.array([[np.nan, 0, 0]])])
def test_cosine_refuses(rows: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        cosine(rows, np.ones((2, 3)))


def test_tie_rules_differ_where_there_is_a_tie() -> None:
    assert rank_of_own(BAG, ties="strict").tolist() == [1, 2, 2]
    assert rank_of_own(BAG, ties="optimistic").tolist() == [1, 1, 2]
    assert rank_of_own(BAG, ties="expected").tolist() == [1, 1.5, 2]
    assert hits_at_1(BAG, ties="strict").tolist() == [1, 0, 0]
    assert hits_at_1(BAG, ties="optimistic").tolist() == [1, 1, 0]
    assert hits_at_1(BAG, ties="expected").tolist() == [1, 0.5, 0]


def test_margins_are_own_less_best_other() -> None:
    assert margins(BAG) == pytest.approx([0.7, 0.0, -0.1], abs=1e-6)
    before = BAG.copy()
    margins(BAG)
    assert (before == BAG).all()


def test_a_bag_of_equal_images_is_chance() -> None:
    flat = np.zeros((4, 4), np.float32)
    assert hits_at_1(flat, ties="strict").tolist() == [0] * 4
    assert hits_at_1(flat, ties="optimistic").tolist() == [1] * 4
    assert hits_at_1(flat, ties="expected").tolist() == [0.25] * 4


def test_hits_agree_with_ranks_and_margins(generator: np.random.Generator) -> None:
    for _ in range(50):
        bag = generator.integers(0, 4, size=(5, 5)).astype(np.float32)
        assert (hits_at_1(bag) == (rank_of_own(bag) == 1)).all()
        assert (hits_at_1(bag) == (margins(bag) > 0)).all()
        assert (hits_at_1(bag, ties="optimistic") == (margins(bag) >= 0)).all()


def test_expected_hits_are_the_mean_over_random_orders(generator: np.random.Generator) -> None:
    scores = np.array([[2, 1, 1, 1, 1, 0]], np.float32)
    relevant = np.array([[False, True, True, False, False, False]])
    hits = 0
    for _ in range(20_000):
        noise = generator.random(6) * 0.5
        hits += bool(relevant[0, np.argsort(-(scores[0] + noise))[:3]].any())
    # Two of four equals fill places 2 and 3: 1 - C(2,2) / C(4,2).
    [expected] = hits_at_k(scores, relevant, k=3, ties="expected")
    assert expected == pytest.approx(5 / 6)
    assert hits / 20_000 == pytest.approx(expected, abs=0.01)
    assert hits_at_k(scores, relevant, k=1, ties="expected").tolist() == [0]
    assert hits_at_k(scores, relevant, k=6, ties="expected").tolist() == [1]


def test_recall_at_k_by_column_and_by_mask() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]])
    own = np.array([0, 1])
    assert [recall_at_k(scores, own, k=k) for k in (1, 2)] == [0.5, 1.0]
    several = np.array([[False, True, True], [True, False, False]])
    assert [recall_at_k(scores, several, k=k) for k in (1, 2, 3)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("bag", [np.zeros((1, 1)), np.zeros((2, 3)), np.zeros(4), np.full((2, 2), np.nan)])
def test_bags_that_are_none_are_refused(bag: np.ndarray) -> None:
    for score in (rank_of_own, margins, hits_at_1):
        with pytest.raises(ShapeError):
            score(bag)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="strict, optimistic, expected"):
        hits_at_1(BAG, ties="lucky")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="k must be"):
        recall_at_k(BAG, np.arange(3), k=0)
    with pytest.raises(ShapeError, match="columns 0 to 3"):
        recall_at_k(BAG, np.array([0, 1, 3]), k=1)
    with pytest.raises(ShapeError, match="row 1 has no right column"):
        recall_at_k(BAG, np.array([[True] * 3, [False] * 3, [True] * 3]), k=1)
    with pytest.raises(ShapeError):
        recall_at_k(BAG[:0], np.arange(0), k=1)
