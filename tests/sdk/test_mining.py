"""Bags out of embeddings: small cases worked out by hand, and the promises that hold for any rows."""

from __future__ import annotations

import numpy as np
import pytest

from tellapart import mining
from tellapart.errors import ShapeError, UsageError
from tellapart.mining import combined_rows, exact_neighbours, mine_bags, near_duplicates


def at_degrees(*degrees):
    """Unit rows in the plane, so that a cosine is that of the angle between two."""
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def unit_rows(generator, count, width=8):
    rows = generator.normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


SIX = at_degrees(0, 10, 12, 50, 55, 90)


@pytest.mark.parametrize(
    ("size", "bags"),
    [
        # 10 and 12 degrees are nearest to each other, then 50 and 55; 0 and 90 find theirs taken.
        (2, ((1, 2), (3, 4))),
        # cos 2 + cos 10 is the largest sum, around 10; of the rest, 55 has 50 and 90, while 50 wants 12.
        (3, ((1, 2, 0), (4, 3, 5))),
    ],
)
def test_hard_bags_are_the_ones_worked_out_by_hand(size, bags):
    assert mine_bags(SIX, size=size, near_duplicate=1).bags == bags


def test_the_report_counts_what_was_done():
    # 22 and 65 degrees are within 14 degrees (cosine 0.97) of an earlier one.
    assert mine_bags(at_degrees(0, 20, 22, 60, 65, 100), size=2, seed=5).to_record() == {
        "size": 2,
        "band": "hard",
        "ranks": [1, 1],
        "seed": 5,
        "near_duplicate": 0.97,
        "images": 6,
        "near_duplicates_removed": 2,
        "bags": 2,
        "images_used": 4,
        # Left are 0, 20, 60 and 100: pairs 20 and 40 degrees apart.
        "mean_similarity": pytest.approx((0.9396926 + 0.7660444) / 2, abs=2e-6),
    }


def test_of_near_duplicates_the_first_stays_and_a_chain_is_not_lost():
    rows = at_degrees(0, 1, 2, 40, 40)
    limit = float(np.cos(np.deg2rad(1.5)))
    assert near_duplicates(rows, threshold=limit).tolist() == [False, True, False, False, True]
    assert not near_duplicates(rows, threshold=1.0).any()


def test_near_duplicates_are_judged_by_the_images_alone():
    rows = at_degrees(0, 20, 40, 60)
    images = at_degrees(0, 0.5, 90, 180)
    found = mine_bags(rows, size=2, image_rows=images)
    assert found.near_duplicates_removed == 1
    # 20 degrees is out, so 0 has 40 left, which likes 60 better.
    assert found.bags == ((2, 3),)


def test_neighbours_agree_with_sorting_everything_in_any_block_size(generator, monkeypatch):
    rows = unit_rows(generator, 60)
    rows[7] = rows[50]  # equal ones come by lower index
    scores = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    expected = np.argsort(-np.round(scores, 6), axis=1, kind="stable")[:, :9]
    assert (exact_neighbours(rows, 9) == expected).all()
    monkeypatch.setattr(mining, "_BLOCK_BYTES", 4 * 60 * 7)
    assert (exact_neighbours(rows, 9) == expected).all()
    assert exact_neighbours(rows, 59).shape == (60, 59)


def test_equal_rows_are_taken_by_lower_index():
    rows = at_degrees(0, 0, 0, 0)
    assert exact_neighbours(rows, 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]
    assert mine_bags(rows, size=2, near_duplicate=1.0).bags == ((0, 1),)


@pytest.mark.parametrize("band", ["hard", "medium", "easy"])
@pytest.mark.parametrize("size", [2, 5])
def test_bags_hold_every_image_once_and_come_again(band, size, generator):
    rows = unit_rows(generator, 300)
    found = mine_bags(rows, size=size, band=band, seed=3)
    flat = [index for bag in found.bags for index in bag]
    assert {len(bag) for bag in found.bags} == {size}
    assert len(set(flat)) == len(flat) == found.images_used
    assert mine_bags(rows, size=size, band=band, seed=3).bags == found.bags
    other = mine_bags(rows, size=size, band=band, seed=4).bags
    assert (other == found.bags) == (band == "hard")


def test_hard_bags_do_not_depend_on_the_order_of_rows(generator):
    rows = unit_rows(generator, 200)
    order = generator.permutation(200)
    as_given = {frozenset(bag) for bag in mine_bags(rows, size=3).bags}
    shuffled = {frozenset(int(order[i]) for i in bag) for bag in mine_bags(rows[order], size=3).bags}
    assert as_given == shuffled
    assert len(as_given) > 20


@pytest.mark.parametrize(
    ("band", "count", "low", "high"), [("medium", 400, 50, 200), ("easy", 2100, 1000, 2099)]
)
def test_the_others_of_a_bag_come_from_its_band(band, count, low, high, generator, monkeypatch):
    rows = unit_rows(generator, count)
    monkeypatch.setattr(mining, "_BLOCK_BYTES", 4 * count * 64)
    found = mine_bags(rows, size=4, band=band, max_bags=25, near_duplicate=1.0)
    assert found.ranks == (low, high)
    assert len(found.bags) == 25
    for anchor, *others in found.bags:
        scores = rows.astype(np.float64) @ rows[anchor]
        scores[anchor] = np.inf
        rank_of = np.empty(count, int)
        rank_of[np.argsort(-scores)] = np.arange(count)
        assert all(low <= rank_of[other] <= high for other in others)


def test_bands_shrink_with_few_images(generator):
    rows = unit_rows(generator, 101)
    assert mine_bags(rows, size=3, band="medium", near_duplicate=1.0).ranks == (26, 100)
    assert mine_bags(rows, size=3, band="easy", near_duplicate=1.0).ranks == (51, 100)


def test_bands_are_ordered_by_likeness(generator):
    rows = unit_rows(generator, 400)
    hard, medium, easy = (mine_bags(rows, size=2, band=band).mean_similarity for band in mining.BANDS)
    assert hard > medium > easy


def test_another_index_is_asked_in_place_of_ours(generator):
    rows = unit_rows(generator, 40)
    asked = []

    def neighbours(some, count):
        asked.append((some.shape, count))
        return exact_neighbours(some, count)

    assert mine_bags(rows, size=4, neighbours=neighbours).bags == mine_bags(rows, size=4).bags
    assert asked == [((40, 8), 3)]


def test_rows_of_sight_and_words_are_added_and_made_unit_length():
    images = np.array([[1.0, 0.0]], np.float32)
    # Two captions at right angles to each other: their mean has length 0.71 and is not made unit length.
    captions = np.array([[0.5, 0.5]], np.float32)
    expected = np.array([1.5, 0.5]) / np.sqrt(2.5)
    assert combined_rows(images, captions)[0] == pytest.approx(expected, abs=1e-7)
    with pytest.raises(ShapeError, match="cancel out"):
        combined_rows(images, -images)
    with pytest.raises(ShapeError, match="one shape"):
        combined_rows(images, captions[:, :1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 1}, "size from 2"),
        ({"size": 7}, "a bag holds 7"),
        ({"size": 2, "band": "harder"}, "band must be one of hard, medium, easy"),
        ({"size": 2, "max_bags": 0}, "got 2, 0 and 1"),
        ({"size": 2, "rounds": 0}, "got 2, None and 0"),
        ({"size": 2, "near_duplicate": 0.0}, "near_duplicate must be"),
        ({"size": 5, "band": "easy", "near_duplicate": 1}, "too few for easy bags of 5"),
    ],
)
def test_what_cannot_be_is_a_usage_error(options, words):
    with pytest.raises(UsageError, match=words):
        mine_bags(SIX, **options)


def test_rows_that_are_no_unit_rows_are_refused():
    for rows in (SIX * 2, SIX[0], np.full((6, 2), np.nan, np.float32), SIX[:0]):
        with pytest.raises(ShapeError):
            mine_bags(rows, size=2)
    with pytest.raises(ShapeError, match="as many image_rows"):
        mine_bags(SIX, size=2, image_rows=SIX[:5])
    with pytest.raises(UsageError, match="count must be"):
        exact_neighbours(SIX, 6)


def test_a_further_round_gives_bags_to_images_whose_nearest_were_taken():
    # 0 and 90 degrees are what the first round leaves over.
    assert mine_bags(SIX, size=2, near_duplicate=1, rounds=2).bags == ((1, 2), (3, 4), (0, 5))
    assert mine_bags(SIX, size=2, near_duplicate=1, rounds=9).bags == ((1, 2), (3, 4), (0, 5))
