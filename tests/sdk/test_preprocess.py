"""Golden pixels: resizing agrees with two implementations that are not Pillow."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest
from PIL import Image

from tellapart.errors import MissingExtraError, ShapeError
from tellapart.manifest import Preprocessing
from tellapart.preprocess import to_input

# An independent resampler, written from the definitions: every output pixel is the weighted mean of the input
# under a kernel that is stretched by the shrinking factor, along one side and then along the other. Pillow
# rounds and clips to 8 bits between the two, and some of its releases begin with the side that shrinks most.


def triangle(x):
    return np.maximum(0, 1 - np.abs(x))


def cubic(x):
    """Keys 1981 with a = -1/2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def lanczos3(x):
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


KERNELS = {"bilinear": triangle, "bicubic": cubic, "lanczos": lanczos3}


def resampled_rows(values, size, kernel):
    """Along axis 0, weights in float64, the result rounded and clipped."""
    scale = values.shape[0] / size
    places = (np.arange(size) + 0.5) * scale - 0.5
    weight = kernel((np.arange(values.shape[0])[None, :] - places[:, None]) / max(scale, 1.0))
    weight /= weight.sum(axis=1, keepdims=True)
    return np.clip(np.round(np.tensordot(weight, values.astype(np.float64), axes=1)), 0, 255)


def resampled(values, height, width, kind, *, down_first=False):
    if down_first:
        turned = resampled(values.transpose(1, 0, 2), width, height, kind)
        return turned.transpose(1, 0, 2)
    across = resampled_rows(values.transpose(1, 0, 2), width, KERNELS[kind]).transpose(1, 0, 2)
    return resampled_rows(across, height, KERNELS[kind])


def largest_gap(got, *wanted):
    """To the nearest of several answers; Pillow's weights have 22 bits, so a single level may differ."""
    return min(np.abs(got.astype(int) - want).max() for want in wanted)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(("height", "width"), [(61, 40), (16, 90), (9, 7), (1, 1), (200, 3)])
def test_squash_equals_the_independent_resampler(kind, height, width, generator):
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    got = to_input(image, Preprocessing(image_px=16, resize="squash", filter=kind))
    assert got.dtype == np.uint8
    assert got.shape == (16, 16, 3)
    assert (
        largest_gap(got, *(resampled(image, 16, 16, kind, down_first=first) for first in (False, True))) <= 1
    )


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(("height", "width"), [(61, 40), (40, 61), (16, 90), (9, 7), (33, 33)])
def test_crop_is_the_middle_of_the_resized_whole(kind, height, width, generator):
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    short = min(height, width)
    high, wide = 16 * height // short, 16 * width // short
    wholes = [resampled(image, high, wide, kind, down_first=first) for first in (False, True)]
    top, left = (high - 16) // 2, (wide - 16) // 2
    got = to_input(image, Preprocessing(image_px=16, resize="crop", filter=kind))
    assert largest_gap(got, *(whole[top : top + 16, left : left + 16] for whole in wholes)) <= 1


def golden_image():
    """(6, 5, 3) uint8 from a formula, so that anybody can make it again."""
    row, column, channel = np.indices((6, 5, 3))
    return ((row * 53 + column * 91 + channel * 37 + row * column * 17) % 256).astype(np.uint8)


# From torch 2.13: interpolate(image, (3, 3), mode=..., antialias=True, align_corners=False) on float64,
# rounded and clipped; channel 0 of the result.
GOLDEN = {
    "bilinear": [[82, 106, 129], [135, 126, 152], [125, 96, 128]],
    "bicubic": [[78, 105, 127], [139, 129, 156], [126, 90, 125]],
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_pixels_of_torch(kind):
    got = to_input(golden_image(), Preprocessing(image_px=3, filter=kind))
    np.testing.assert_allclose(got[:, :, 0].astype(int), GOLDEN[kind], atol=1)


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("kind", KERNELS)
def test_an_image_of_the_right_size_is_not_touched(resize, kind, generator):
    image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    got = to_input(image, Preprocessing(image_px=16, resize=resize, filter=kind))
    np.testing.assert_array_equal(got, image)
    assert not np.shares_memory(got, image)


def test_scaling_outside_the_graph(generator):
    image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    page = Preprocessing(image_px=16, mean=(100.0, 110.5, 120.0), std=(50.0, 64.0, 128.0), in_graph=False)
    got = to_input(image, page)
    assert got.dtype == np.float32
    assert got.shape == (3, 16, 16)
    assert got.flags.c_contiguous
    assert got[1, 2, 3] == np.float32((float(image[2, 3, 1]) - 110.5) / 64)
    assert got[2, 15, 0] == np.float32((float(image[15, 0, 2]) - 120) / 128)


def test_crop_out_of_a_larger_fit(generator):
    image = generator.integers(0, 256, (50, 80, 3)).astype(np.uint8)
    page = Preprocessing(image_px=24, resize="crop", resize_px=32, filter="bilinear")
    whole = resampled(image, 32, 51, "bilinear")  # 80 / 50 * 32 is 51.2
    got = to_input(image, page)
    assert got.shape == (24, 24, 3)
    assert largest_gap(got, whole[4:28, 13:37]) <= 1


@pytest.mark.parametrize(
    ("size", "between"),
    # Of transformers' SmolVLM processor: 40 / 80 * 50 is 25, made even; the strip's 0.02 is at least 1.
    [((50, 80), (26, 40)), ((80, 50), (40, 26)), ((1, 2000), (1, 40)), ((16, 16), (40, 40))],
)
def test_the_long_side_first_and_then_bent(size, between, generator):
    image = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
    page = Preprocessing(image_px=16, resize="squash", resize_px=40, filter="lanczos")
    picture = Image.fromarray(image).resize(between[::-1], Image.Resampling.LANCZOS)
    wanted = np.asarray(picture.resize((16, 16), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(to_input(image, page), wanted)


def test_a_long_strip_is_cut_before_it_is_enlarged():
    strip = np.zeros((1, 1_000_000, 3), np.uint8)  # 224 x 224,000,000 pixels, were it enlarged as a whole
    strip[:, 499_996:500_004] = 200
    got = to_input(strip, Preprocessing(image_px=224, resize="crop", filter="bicubic"))
    assert got.shape == (224, 224, 3)
    assert (got == 200).all()
    assert to_input(strip.transpose(1, 0, 2), Preprocessing(image_px=8, resize="crop")).shape == (8, 8, 3)
    assert to_input(strip, Preprocessing(image_px=8)).shape == (8, 8, 3)


def test_the_image_is_not_changed_and_may_lie_anyhow_in_memory(generator):
    image = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mirrored = image[:, ::-1]
    before = mirrored.copy()
    page = Preprocessing(image_px=16)
    np.testing.assert_array_equal(to_input(mirrored, page), to_input(before, page))
    np.testing.assert_array_equal(mirrored, before)
    image.flags.writeable = False
    assert to_input(image, page).flags.writeable


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 0, 3), np.uint8), [[1, 2, 3]]],
)
def test_what_are_no_pixels(array):
    with pytest.raises(ShapeError, match="an image array must be"):
        to_input(array, Preprocessing(image_px=16))


def test_without_pillow_only_resizing_fails(monkeypatch):
    real = builtins.__import__
    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *rest, **more: real("no_such_pillow" if "PIL" in name else name, *rest, **more),
    )
    assert to_input(np.zeros((16, 16, 3), np.uint8), Preprocessing(image_px=16)).shape == (16, 16, 3)
    with pytest.raises(MissingExtraError, match="Resizing an image needs Pillow"):
        to_input(np.zeros((8, 8, 3), np.uint8), Preprocessing(image_px=16))
