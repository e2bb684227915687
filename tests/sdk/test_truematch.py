"""Scores of bags and groups: oracles, ties and intervals whose answers are known without the code."""

from __future__ import annotations

import numpy as np
import pytest

from tellapart.errors import ShapeError, UsageError
from tellapart.similarity import TIE_RULES
from tellapart.truematch import (
    Recall,
    bag_similarity,
    groups_recall,
    random_groups,
    recall_with_interval,
    score_bags,
    score_size,
)


def unit_rows(generator, count, width=16):
    rows = generator.normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some_bags(generator, images, size):
    """Disjoint bags of all images that fill one."""
    return generator.permutation(images)[: images // size * size].reshape(-1, size)


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_captions_that_are_their_images_find_them_all(size, generator):
    rows = unit_rows(generator, 70)
    found = score_size(rows, rows, some_bags(generator, 70, size))
    assert found.recall == Recall(1.0, 1.0, 1.0)
    assert set(found.by_rule.values()) == {1.0}


@pytest.mark.parametrize("size", [3, 5, 7])
def test_shuffled_captions_find_by_chance(size, generator):
    rows = unit_rows(generator, 2100)
    found = score_size(rows[generator.permutation(2100)], rows, some_bags(generator, 2100, size))
    assert found.recall.low <= found.chance == 1 / size <= found.recall.high
    assert found.recall.high - found.recall.low < 0.06


def test_hits_and_similarity_by_hand():
    images = np.eye(4, dtype=np.float32)
    captions = np.array([[0.6, 0.8, 0, 0], [0, 1, 0, 0], [0, 0, 0.8, 0.6], [0.6, 0, 0.8, 0]], np.float32)
    bags = np.array([[0, 1], [3, 2]])
    similarity = bag_similarity(captions, images, bags)
    assert similarity == pytest.approx(np.array([[[0.6, 0.8], [0, 1]], [[0, 0.8], [0.6, 0.8]]]), abs=1e-7)
    assert score_bags(captions, images, bags).tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_one_caption_for_all_hits_exactly_once_a_bag(generator):
    images = unit_rows(generator, 60)
    captions = np.repeat(unit_rows(generator, 1), 60, axis=0)
    found = score_size(captions, images, some_bags(generator, 60, 5))
    assert set(found.by_rule.values()) == {0.2}
    assert (found.hits().sum(axis=1) == 1).all()


@pytest.mark.parametrize("width", [3, 17, 256, 511])
def test_equal_images_tie_exactly_whatever_their_place(width, generator):
    # A matrix product in float32 breaks such ties in a fifth of the bags.
    for size in (2, 3, 7, 11):
        rows = unit_rows(generator, size, width)
        first, second = generator.choice(size, 2, replace=False)
        rows[second] = rows[first]
        hits = {rule: score_bags(rows, rows, np.arange(size)[None], ties=rule)[0] for rule in TIE_RULES}
        tied = [first, second]
        assert hits["strict"][tied].tolist() == [0.0, 0.0]
        assert hits["optimistic"][tied].tolist() == [1.0, 1.0]
        assert hits["expected"][tied].tolist() == [0.5, 0.5]
        assert hits["strict"].sum() == size - 2


def test_all_images_equal_is_told_by_the_rules(generator):
    rows = np.repeat(unit_rows(generator, 1), 12, axis=0)
    found = score_size(rows, rows, np.arange(12).reshape(3, 4), ties="expected")
    assert found.by_rule == {"strict": 0.0, "optimistic": 1.0, "expected": 0.25}
    assert found.recall.value == 0.25
    record = found.to_record()
    assert (record["recall_at_1"], record["recall_at_1_strict"], record["recall_at_1_optimistic"]) == (
        0.25,
        0,
        1,
    )
    assert (record["bags"], record["images"], record["chance"]) == (3, 12, 0.25)


def test_rules_are_ordered_for_any_rows():
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies

    # Small whole numbers, so that ties come often.
    numbers = strategies.integers(-1, 1)

    @hypothesis.given(
        strategies.integers(2, 5).flatmap(
            lambda size: strategies.tuples(
                strategies.just(size),
                strategies.lists(numbers, min_size=2 * size * 2, max_size=2 * size * 2),
            )
        )
    )
    @hypothesis.settings(max_examples=200, deadline=None)
    def check(drawn):
        size, values = drawn
        captions, images = np.array(values, np.float32).reshape(2, size, 2)
        bags = np.arange(size)[None]
        strict, optimistic, expected = (score_bags(captions, images, bags, ties=rule) for rule in TIE_RULES)
        assert (strict <= expected).all()
        assert (expected <= optimistic).all()
        scores = captions @ images.T  # exact in whole numbers
        own, best = np.diagonal(scores), scores.max(axis=1)
        ways = (scores == best[:, None]).sum(axis=1)
        assert expected[0] == pytest.approx(np.where(own == best, 1 / ways, 0))

    check()


def test_the_interval_is_that_of_the_binomial_law(generator):
    hits = (generator.random(900) < 0.3).astype(np.float64)
    found = recall_with_interval(hits)
    mean = hits.mean()
    half = 1.959964 * np.sqrt(mean * (1 - mean) / 900)
    assert found.value == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=0.003)
    assert recall_with_interval(hits) == found
    assert recall_with_interval(hits, seed=1) != found


def test_bags_are_resampled_and_not_captions(generator):
    # Where all captions of a bag share one fate, a bag is worth one caption.
    bags = (generator.random(200) < 0.5).astype(np.float64)
    assert recall_with_interval(np.repeat(bags[:, None], 5, axis=1)) == recall_with_interval(bags)
    apart = recall_with_interval((generator.random(1000) < 0.5).astype(np.float64))
    together = recall_with_interval(bags)
    assert together.high - together.low > 1.8 * (apart.high - apart.low)


def test_one_bag_has_an_interval_without_width():
    assert recall_with_interval(np.array([[1.0, 0.0]])) == Recall(0.5, 0.5, 0.5)


def test_groups_are_ranked_by_hand():
    images = np.eye(7, dtype=np.float32)
    captions = np.zeros((7, 7), np.float32)
    # The own place of each of the first six: 1, 2, 3, 6 and 1, 1; image 6 is in no group.
    captions[0, [0, 1, 2, 3, 4, 5]] = [9, 1, 2, 3, 4, 5]
    captions[1, [0, 1, 2, 3, 4, 5]] = [9, 8, 1, 2, 3, 4]
    captions[2, [0, 1, 2, 3, 4, 5]] = [9, 8, 7, 1, 2, 3]
    captions[3, [0, 1, 2, 3, 4, 5]] = [9, 8, 7, 1, 6, 5]
    captions[4, 4] = captions[5, 5] = 1
    found = groups_recall(captions, images, np.array([[0, 1, 2, 3, 4, 5]]))
    assert (found.groups, found.images, found.chance) == (1, 6, 1 / 6)
    assert found.recall_at_1.value == pytest.approx(3 / 6)
    assert found.recall_at_5 == pytest.approx(5 / 6)
    assert found.mean_rank == pytest.approx(14 / 6)
    assert found.median_rank == 1.5
    assert found.to_record()["recall_at_1"] == 0.5


def test_groups_of_an_oracle_and_of_nothing(generator):
    rows = unit_rows(generator, 300)
    groups = generator.permutation(300).reshape(3, 100)
    assert groups_recall(rows, rows, groups).recall_at_1.value == 1.0
    same = np.repeat(rows[:1], 300, axis=0)
    found = groups_recall(same, same, groups, ties="expected")
    assert found.by_rule == {"strict": 0.0, "optimistic": 1.0, "expected": pytest.approx(0.01)}
    assert (found.mean_rank, found.recall_at_5) == (50.5, pytest.approx(0.05))


def test_a_permutation_is_cut_into_groups_that_do_not_depend_on_the_order_of_ids():
    names = [f"{number}.jpg" for number in range(250)]
    groups = random_groups(names, seed=4)
    assert [len(group) for group in groups] == [100, 100]
    assert len({name for group in groups for name in group}) == 200
    assert random_groups(names[::-1], seed=4) == groups
    assert random_groups(names, seed=5) != groups
    assert random_groups(list(range(99))) == ()
    with pytest.raises(UsageError, match="different images"):
        random_groups([1, 1], size=2)


@pytest.mark.parametrize(
    ("bags", "words"),
    [
        (np.array([[0, 4]]), "there are 4"),
        (np.array([[-1, 2]]), "there are 4"),
        (np.array([[1, 1]]), "a row twice"),
        (np.array([[1]]), "k > 1"),
        (np.zeros((0, 2), np.int64), "m > 0"),
        (np.array([[0.0, 1.0]]), "int"),
    ],
)
def test_bags_that_cannot_be_are_shape_errors(bags, words):
    rows = np.eye(4, dtype=np.float32)
    with pytest.raises(ShapeError, match=words):
        score_bags(rows, rows, bags)


def test_rows_that_do_not_match_are_shape_errors():
    rows = np.eye(4, dtype=np.float32)
    with pytest.raises(ShapeError, match="two \\(n, d\\)"):
        score_bags(rows[:3], rows, np.array([[0, 1]]))
    with pytest.raises(ShapeError, match="NaN"):
        score_bags(np.where(rows == 1, np.nan, rows), rows, np.array([[0, 1]]))
    with pytest.raises(UsageError, match="ties must be"):
        score_bags(rows, rows, np.array([[0, 1]]), ties="lucky")
    with pytest.raises(ShapeError, match="expected hits"):
        recall_with_interval(np.zeros((0, 3)))
