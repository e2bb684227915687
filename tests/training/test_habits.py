"""Habits of captions, counted by hand."""

from __future__ import annotations

import pytest

from tellapart_training.metrics.habits import distinct_in_bags, habits, repeats_itself


@pytest.mark.parametrize(
    ("caption", "repeats"),
    [
        ("a man and another man", True),  # a content word twice
        ("a boy in a hat in a boat", True),  # "in a" twice
        ("the dog on the hill by the lake", False),  # articles alone may come again
        ("two dogs and one dog", False),  # other forms are other words
        ("", False),
    ],
)
def test_repetition(caption: str, repeats: bool) -> None:
    assert repeats_itself(caption.split()) is repeats


def test_figures_of_three_captions() -> None:
    captions = [text.split() for text in ("a dog runs", "a dog runs", "a red red fox sits here")]
    figures = habits(captions, cut=[False, True, False], bags={2: [[0, 1], [0, 2]], 3: [[0, 1, 2]]})
    assert figures == {
        "mean_words": 4.0,
        "vocabulary_used": 7.0,  # a dog runs red fox sits here
        "distinct_captions": pytest.approx(2 / 3),
        "repeated_words": pytest.approx(1 / 3),
        "cut": pytest.approx(1 / 3),
        "distinct_in_bags": pytest.approx((1 / 2 + 1 + 2 / 3) / 3),
    }


def test_what_nobody_knows_is_left_out() -> None:
    assert {"cut", "distinct_in_bags"}.isdisjoint(habits([["a"]]))


def test_one_caption_for_all_is_one_part_of_each_bag() -> None:
    assert distinct_in_bags([["a"]] * 7, [[0, 1, 2, 3, 4, 5, 6]]) == pytest.approx(1 / 7)
