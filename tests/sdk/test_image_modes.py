"""Modes, depths, transparency, frames and orientation: the pixels that come out."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tellapart.errors import UnreadableImageError
from tellapart.image import load_image


def saved(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def arrow():
    """(4, 6, 3) uint8 where every pixel differs, so that a wrong turn shows."""
    return (np.arange(4 * 6 * 3, dtype=np.uint8) * 3).reshape(4, 6, 3)


def test_gray_and_black_and_white_become_three_equal_channels():
    gray = np.array([[0, 100, 255]], np.uint8)
    assert load_image(saved(Image.fromarray(gray))).tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    bits = Image.fromarray(gray).point(lambda value: 255 * (value > 50)).convert("1")
    assert load_image(saved(bits)).tolist() == [[[0] * 3, [255] * 3, [255] * 3]]


# 16 bits to 8: value * 255 / 65535 = value / 257, rounded; by hand, 128 / 257 = 0.498 and 129 / 257 = 0.502.
DEEP = [(0, 0), (128, 0), (129, 1), (257, 1), (32768, 128), (65407, 255), (65406, 254), (65535, 255)]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_files_are_scaled(kind):
    content = saved(Image.fromarray(np.array([[value for value, _ in DEEP]], np.uint16)), kind)
    assert load_image(content)[0, :, 0].tolist() == [eight for _, eight in DEEP]


def test_16_bit_pil_images_in_either_byte_order():
    values = np.array([[value for value, _ in DEEP]], np.uint16)
    for mode, order in (("I;16", "<u2"), ("I;16B", ">u2")):
        picture = Image.frombytes(mode, (len(DEEP), 1), values.astype(order).tobytes())
        assert load_image(picture)[0, :, 2].tolist() == [eight for _, eight in DEEP]


def test_16_bit_gray_with_orientation_is_turned_too():
    picture = Image.fromarray(np.array([[0, 65535]], np.uint16))
    picture.getexif()[0x0112] = 6
    assert load_image(picture)[:, :, 0].tolist() == [[0], [255]]


def test_16_bit_colour_png_keeps_the_high_byte():
    """Written by hand after the PNG specification, as Pillow cannot; it reads the high byte of each value."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + struct.pack(">6H", 0x1234, 0xFFFF, 0x0000, 0x80FF, 0x0100, 0xFE00)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )
    np.testing.assert_allclose(load_image(content), [[[0x12, 255, 0], [0x80, 1, 0xFE]]], atol=1)


@pytest.mark.parametrize("low", [-1, 65536])
def test_pixels_without_a_known_range_are_refused(low):
    whole = Image.fromarray(np.array([[0, low]], np.int32))
    with pytest.raises(UnreadableImageError, match=r"32-bit pixels .* convert it to 8 or 16 bits"):
        load_image(whole)
    with pytest.raises(UnreadableImageError, match="floating-point pixels"):
        load_image(Image.fromarray(np.array([[0.5]], np.float32)))


def test_transparent_pixels_lie_on_white():
    clear = Image.fromarray(np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], np.uint8))
    # 51 / 255 = a fifth of (200, 0, 0) and four fifths of white: (244, 204, 204).
    want = [[[200, 0, 0], [255, 255, 255], [244, 204, 204]]]
    np.testing.assert_allclose(load_image(saved(clear)), want, atol=1)
    np.testing.assert_allclose(load_image(saved(clear, "WEBP", lossless=True, exact=True)), want, atol=1)
    np.testing.assert_allclose(load_image(clear.convert("RGBa")), want, atol=2)


def test_gray_with_alpha_lies_on_white():
    picture = Image.frombytes("LA", (2, 1), bytes([10, 255, 10, 0]))
    assert load_image(saved(picture)).tolist() == [[[10] * 3, [255] * 3]]
    np.testing.assert_allclose(load_image(picture.convert("La")), [[[10] * 3, [255] * 3]], atol=1)


def test_palette_with_one_clear_colour_and_with_alpha_per_colour():
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    picture.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250])
    assert load_image(saved(picture, transparency=1)).tolist() == [[[250, 0, 0], [255] * 3, [0, 0, 250]]]
    assert load_image(saved(picture, "GIF", transparency=1)).tolist() == [
        [[250, 0, 0], [255] * 3, [0, 0, 250]]
    ]
    alphas = load_image(saved(picture, transparency=bytes([255, 0, 51])))
    np.testing.assert_allclose(alphas, [[[250, 0, 0], [255] * 3, [204, 204, 254]]], atol=1)


def test_one_clear_colour_in_a_colour_png():
    picture = Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8))
    assert load_image(saved(picture, transparency=(1, 2, 3))).tolist() == [[[255] * 3, [9] * 3]]


def test_cmyk_jpeg_has_the_right_colours():
    """Full cyan, magenta, yellow and black ink; JPEG is lossy, so whole blocks and a wide tolerance."""
    inks = np.zeros((16, 64, 4), np.uint8)
    for ink in range(4):
        inks[:, 16 * ink : 16 * (ink + 1), ink] = 255
    pixels = load_image(saved(cmyk(inks), "JPEG", quality=95))
    middles = pixels[8, 8::16].astype(int)
    np.testing.assert_allclose(middles, [[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]], atol=12)


def cmyk(inks):
    return Image.frombytes("CMYK", (inks.shape[1], inks.shape[0]), inks.tobytes())


def test_ycbcr_and_hsv_are_converted_and_lab_is_refused_or_converted(arrow):
    picture = Image.fromarray(arrow)
    np.testing.assert_allclose(load_image(picture.convert("YCbCr")), arrow, atol=3)
    assert load_image(picture.convert("HSV")).shape == arrow.shape
    lab = Image.frombytes("LAB", (2, 1), bytes([255, 0, 0, 0, 0, 0]))  # white and black; 0 is neutral
    try:
        np.testing.assert_allclose(load_image(lab), [[[255] * 3, [0] * 3]], atol=3)
    except UnreadableImageError as error:  # Pillow before 11.3 has no such conversion
        assert "kind 'LAB', which cannot be made RGB" in str(error)  # noqa: PT017


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_many_frames_the_first_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert load_image(content)[4, 4].tolist() == [255, 0, 0]
    picture = Image.open(io.BytesIO(content))
    picture.seek(2)
    assert load_image(picture)[4, 4].tolist() == [0, 0, 255]


# EXIF 2.32, tag 0x0112: which stored corner is the upper left one of the upright image, and what lies beside
# it to the right. Written out for the 2 x 3 image [[1, 2, 3], [4, 5, 6]].
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind, orientation):
    stored = Image.fromarray(np.array([[10, 20, 30], [40, 50, 60]], np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    want = np.array(UPRIGHT[orientation]) * 10
    np.testing.assert_array_equal(load_image(content)[:, :, 0], want)
    with Image.open(io.BytesIO(content)) as picture:
        np.testing.assert_array_equal(load_image(picture)[:, :, 0], want)


def test_a_rotated_jpeg(arrow):
    big = np.kron(arrow, np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = load_image(saved(Image.fromarray(big), "JPEG", exif=exif, quality=95, subsampling=0))
    assert turned.shape == (96, 64, 3)
    np.testing.assert_allclose(
        turned[8, -8].astype(int), arrow[0, 0], atol=8
    )  # upper left goes to upper right
    assert turned.flags.c_contiguous


@pytest.mark.parametrize("orientation", [0, 9, 700, "6", b"\xff"])
def test_an_orientation_that_means_nothing_is_left_alone(orientation, arrow):
    picture = Image.fromarray(arrow)
    picture.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(load_image(picture), arrow)


def test_a_broken_exif_block_says_nothing_about_the_pixels(arrow):
    content = saved(Image.fromarray(arrow), exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    np.testing.assert_array_equal(load_image(content), arrow)
