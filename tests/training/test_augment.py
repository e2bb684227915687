from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tellapart_training.augment import (  # noqa: E402
    Truths,
    apply_changes,
    augment,
    draw_changes,
    keyed_generator,
    truths_of,
)
from tellapart_training.config import AugmentConfig  # noqa: E402

pytestmark = pytest.mark.train
FREE, BOUND = Truths(sides=False, colours=False), Truths(sides=True, colours=True)


@pytest.mark.parametrize(
    ("captions", "sides", "colours"),
    [
        (["a dog runs", "a man on the Left"], True, False),
        (["the rightmost horse"], True, False),
        (["a bright sky", "a man leftover food"], False, False),
        (["a RED ball"], False, True),
        (["a blond girl"], False, True),
        (["a tri-colored dog"], False, True),
        (["a greenhouse and a blackboard"], False, False),
        (["dogs play"], False, False),
    ],
)
def test_captions_forbid_what_would_make_them_false(captions: list[str], sides: bool, colours: bool) -> None:
    assert truths_of(captions) == Truths(sides=sides, colours=colours)


def _keys(count: int, *key: int) -> list[torch.Generator]:
    return [keyed_generator(*key, index) for index in range(count)]


def test_no_image_with_a_side_is_mirrored_and_no_named_colour_shifts() -> None:
    config = AugmentConfig(flip=0.5, colour=0.3)
    bound = draw_changes(config, [BOUND] * 200, _keys(200, 1))
    assert (bound.mirror == 1).all()
    assert (bound.saturation == 1).all()
    assert (bound.channels == 1).all()
    free = draw_changes(config, [FREE] * 200, _keys(200, 1))
    assert 60 < int((free.mirror == -1).sum()) < 140
    assert (free.saturation != 1).any()
    # What is free to change does not depend on the flags.
    assert torch.equal(free.brightness, bound.brightness)
    assert torch.equal(free.extent, bound.extent)


def test_crops_stay_inside_the_image_and_keep_their_share() -> None:
    changes = draw_changes(AugmentConfig(min_scale=0.7, max_aspect=1.15), [FREE] * 300, _keys(300, 2))
    area = changes.extent.prod(dim=1)
    assert float(area.min()) > 0.6  # 0.7, less what a clamped side loses
    assert float(changes.extent.max()) <= 1
    assert ((changes.centre.abs() + changes.extent) <= 1 + 1e-6).all()


def test_a_mirrored_image_is_the_image_reversed() -> None:
    pixels = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    config = AugmentConfig(flip=1.0, min_scale=1.0, brightness=0, contrast=0, colour=0)
    seen = augment(pixels, config, [FREE], _keys(1, 3))
    assert torch.equal(seen, pixels.flip(2))
    kept = augment(pixels, config, [BOUND], _keys(1, 3))
    assert torch.equal(kept, pixels)


def test_an_image_looks_the_same_in_any_batch_and_the_input_is_left_alone() -> None:
    pixels = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    before = pixels.clone()
    together = augment(pixels, AugmentConfig(), [FREE] * 3, _keys(3, 4))
    alone = augment(pixels[1:2], AugmentConfig(), [FREE], [keyed_generator(4, 1)])
    assert torch.equal(together[1:2], alone)
    assert torch.equal(pixels, before)
    assert together.dtype == torch.uint8
    assert not torch.equal(together, pixels)
    assert augment(pixels, AugmentConfig(enabled=False), [FREE] * 3, []) is pixels


def test_brightness_and_contrast_do_what_they_say() -> None:
    pixels = torch.full((1, 4, 4, 3), 100, dtype=torch.uint8)
    pixels[0, :2] = 50
    changes = draw_changes(AugmentConfig(flip=0, min_scale=1, colour=0), [FREE], _keys(1, 5))
    one = torch.ones(1)
    plain = changes._replace(brightness=one, contrast=one)
    assert torch.equal(apply_changes(pixels, plain), pixels)
    brighter = apply_changes(pixels, plain._replace(brightness=one * 1.2))
    assert {int(value) for value in brighter.unique()} == {60, 120}
    flatter = apply_changes(pixels, plain._replace(contrast=one * 0.8))  # mean 75: 55 and 95
    assert {int(value) for value in flatter.unique()} == {55, 95}
