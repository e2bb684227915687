"""The cache against plain lists of what each row has been given."""

from __future__ import annotations

import numpy as np
import pytest

from tellapart.errors import ShapeError
from tellapart.kv_cache import KVCache


def cross(rows: int) -> np.ndarray:
    """(4, rows, 2, 3, 5) float32, each row filled with its number."""
    return np.broadcast_to(np.arange(rows, dtype=np.float32)[None, :, None, None, None], (4, rows, 2, 3, 5))


def grow(cache: KVCache, values: list[float]) -> None:
    token = np.broadcast_to(
        np.array(values, np.float32)[None, :, None, None, None], (4, len(values), 2, 1, 5)
    )
    cache.append(np.concatenate([cache.past, token], axis=3))


def history(cache: KVCache) -> list[list[float]]:
    return cache.past[0, :, 0, :, 0].tolist()


def test_starts_empty_with_a_row_an_image() -> None:
    cache = KVCache.empty(cross(3))
    assert (cache.rows, cache.length, cache.past.shape) == (3, 0, (4, 3, 2, 0, 5))
    assert cache.past.dtype == np.float32


def test_select_keeps_drops_repeats_and_reorders_past_and_image() -> None:
    cache = KVCache.empty(cross(2))
    grow(cache, [10, 20])
    cache.select(np.array([1, 0, 1]))
    assert history(cache) == [[20], [10], [20]]
    assert cache.cross[0, :, 0, 0, 0].tolist() == [1, 0, 1]
    grow(cache, [21, 11, 22])
    cache.select(np.array([2, 1]))
    assert history(cache) == [[20, 22], [10, 11]]
    assert cache.cross[3, :, 1, 2, 4].tolist() == [1, 0]
    assert (cache.rows, cache.length) == (2, 2)


def test_beams_that_change_places_leave_their_image_where_it_is() -> None:
    cache = KVCache.empty(cross(1))
    grow(cache, [1])
    cache.select(np.array([0, 0, 0]))
    image = cache.cross
    grow(cache, [2, 3, 4])
    cache.select(np.array([2, 0, 0]))
    assert history(cache) == [[1, 4], [1, 2], [1, 2]]
    assert cache.cross is image


def test_the_callers_array_is_not_changed() -> None:
    images = cross(2).copy()
    images.flags.writeable = False
    cache = KVCache.empty(images)
    cache.select(np.array([1, 1]))
    grow(cache, [1, 2])
    assert images[0, :, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 1, 2, 3), np.float32), np.zeros((3, 1, 2, 3, 5), np.float32), np.zeros((4, 1, 2, 3, 5))],
)
def test_other_shapes_and_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="cross_kv"):
        KVCache.empty(array)


def test_a_step_that_gives_back_another_shape_is_refused() -> None:
    cache = KVCache.empty(cross(2))
    with pytest.raises(ShapeError, match="present_kv"):
        cache.append(np.zeros((4, 2, 2, 2, 5), np.float32))
