"""Bad input of every kind: a typed error that names the image, before memory is spent on it."""

from __future__ import annotations

import builtins
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart.errors import (
    ImageError,
    ImageTooLargeError,
    MissingExtraError,
    ShapeError,
    TruncatedImageError,
    UnreadableImageError,
    UsageError,
)
from tellapart.image import image_name, load_image, pixel_limit


def encoded(array, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def png_header(width, height, *, depth=8, colour=2):
    """A PNG that declares a size and holds almost nothing, after the PNG specification."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def photo(generator):
    """Smooth noise, (40, 60, 3) uint8."""
    small = generator.integers(0, 256, (5, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((60, 40), Image.Resampling.BICUBIC))


# Ways in.


def test_path_bytes_pil_and_array_are_the_same_image(photo, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photo))
    ways = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())]
    for way in [*ways, Image.fromarray(photo), Image.open(path), photo]:
        loaded = load_image(way)
        np.testing.assert_array_equal(loaded, photo)
        assert loaded.dtype == np.uint8
        assert loaded.flags.c_contiguous
        assert loaded.flags.writeable


def test_the_file_is_closed_again(photo, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photo))
    load_image(path)  # warnings are errors here, a forgotten file would be one
    if Path("/proc/self/fd").exists():
        open_files = [os.path.realpath(f"/proc/self/fd/{handle}") for handle in os.listdir("/proc/self/fd")]
        assert str(path) not in open_files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_each_format_is_found_by_its_first_bytes(kind, photo, tmp_path):
    content = encoded(photo, kind)
    path = tmp_path / "misleading.txt"
    path.write_bytes(content)
    want = np.array(Image.open(io.BytesIO(content)).convert("RGB"))  # Pillow's own way in
    np.testing.assert_array_equal(load_image(path), want)


def test_one_pixel_is_an_image():
    assert load_image(encoded(np.array([[[7, 8, 9]]], np.uint8))).tolist() == [[[7, 8, 9]]]


def test_arguments_are_not_changed(photo):
    upside_down = photo[::-1, :, ::-1]
    before = upside_down.copy()
    loaded = load_image(upside_down)
    np.testing.assert_array_equal(upside_down, before)
    np.testing.assert_array_equal(loaded, before)
    picture = Image.fromarray(photo).convert("P")
    load_image(picture)
    assert picture.mode == "P"


def test_what_an_image_is_called(photo, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(photo))
    with Image.open(tmp_path / "a.png") as picture:
        assert image_name(picture) == str(tmp_path / "a.png")
    assert image_name(Path("b.jpg")) == "b.jpg"
    assert [image_name(b""), image_name(photo), image_name(Image.fromarray(photo))] == [
        "<bytes>",
        "<array>",
        "<Image>",
    ]


# What is refused.


def bad_files(folder):
    """Name -> path, for the test below."""
    (folder / "text.jpg").write_text("not an image, whatever its name says")
    (folder / "empty.png").write_bytes(b"")
    (folder / "short.jpg").write_bytes(b"\xff\xd8")
    (folder / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text.jpg", "is not an image that is read here"),
        ("empty.png", r"is empty \(0 bytes\)"),
        ("short.jpg", "is not an image that is read here"),
        ("page.eps", "is not an image that is read here"),
        ("a.svg", "is not an image that is read here"),
        ("absent.jpg", "there is no file .*check the path"),
        ("", "is a folder; name the image files in it"),
        ("a\0b", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ],
)
def test_unreadable_files_say_why_and_which(name, words, tmp_path):
    bad_files(tmp_path)
    path = os.path.join(tmp_path, name)
    with pytest.raises(UnreadableImageError, match=words) as caught:
        load_image(path)
    assert caught.value.image == path
    assert name in str(caught.value) or "\0" in name


def test_an_address_is_not_fetched(block_network):
    with pytest.raises(UnreadableImageError, match="fetches nothing from the network"):
        load_image("https://example.org/a.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a thing of POSIX")
def test_a_named_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableImageError, match="not a regular file"):
        load_image(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(UnreadableImageError, match="cannot be opened"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("thing", [None, 7, 1.5, ["a.jpg"], {"image": "a.jpg"}])
def test_what_is_no_image_at_all(thing):
    with pytest.raises(UsageError, match=r"an image is a path.*got"):
        load_image(thing)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated_files_are_told_from_what_is_no_image(kind, part, photo, tmp_path):
    content = encoded(photo, kind)
    path = tmp_path / "cut"
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(TruncatedImageError, match=r"breaks off.*fetch or copy it again") as caught:
        load_image(path)
    assert caught.value.image == str(path)


def test_a_progressive_jpeg_that_breaks_off(photo):
    content = encoded(photo, "JPEG", progressive=True)
    with pytest.raises(TruncatedImageError, match=r"^<bytes> "):
        load_image(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4), np.uint8), r"got shape \(4, 4\); a gray image"),
        (np.zeros((4, 4, 4), np.uint8), "drop the fourth channel"),
        (np.zeros((3, 8, 8), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one image at a time"),
        (np.zeros((0, 4, 3), np.uint8), r"got shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "must be uint8 .* got float32"),
        (np.zeros((4, 4, 3), np.int8), "got int8"),
        (np.zeros((4, 4, 3), bool), "got bool"),
    ],
)
def test_arrays_are_checked_and_told_how_to_get_there(array, words):
    with pytest.raises(ShapeError, match=words):
        load_image(array)


# The limit on pixels.


def test_a_huge_header_is_refused_before_decoding(monkeypatch):
    def decode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(
        ImageTooLargeError, match=r"<bytes> is 20000 x 20000 = 400\.0 megapixels, over the limit of 50;"
    ):
        load_image(png_header(20_000, 20_000))


def test_a_huge_gif_bmp_and_jpeg_header_are_refused_too(photo):
    gif = bytearray(encoded(photo, "GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    bmp = bytearray(encoded(photo, "BMP"))
    bmp[18:26] = struct.pack("<ii", 20_000, 20_000)
    jpeg = bytearray(encoded(photo, "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5  # start of frame: length, precision, height, width
    jpeg[size : size + 4] = struct.pack(">HH", 20_000, 20_000)
    for content in (gif, bmp, jpeg):
        with pytest.raises(ImageTooLargeError, match="over the limit of 50"):
            load_image(content)


def test_the_limit_counts_pixels_exactly(photo):
    content = encoded(photo)  # 40 x 60 = 2,400
    assert load_image(content, max_megapixels=0.0024).shape == (40, 60, 3)
    for image in (content, Image.fromarray(photo)):
        with pytest.raises(ImageTooLargeError, match="raise max_megapixels or TELLAPART_MAX_MEGAPIXELS"):
            load_image(image, max_megapixels=0.0023)


def test_the_limit_comes_from_the_argument_then_the_variable_then_50(monkeypatch):
    monkeypatch.delenv("TELLAPART_MAX_MEGAPIXELS", raising=False)
    assert pixel_limit() == 50_000_000
    monkeypatch.setenv("TELLAPART_MAX_MEGAPIXELS", " 1.5 ")
    assert pixel_limit() == 1_500_000
    assert pixel_limit(200) == 200_000_000
    monkeypatch.setenv("TELLAPART_MAX_MEGAPIXELS", "")
    assert pixel_limit() == 50_000_000


@pytest.mark.parametrize("value", ["many", "0", "-3", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(value, monkeypatch):
    monkeypatch.setenv("TELLAPART_MAX_MEGAPIXELS", value)
    with pytest.raises(UsageError, match=f"TELLAPART_MAX_MEGAPIXELS must be a number .* got '{value}'"):
        load_image(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(UsageError, match="max_megapixels must be"):
        pixel_limit(float(value) if value != "many" else True)


@pytest.mark.parametrize("guard", [100, 1500])  # Pillow raises above twice its limit and warns above once
def test_pillows_own_guard_neither_stops_us_nor_is_touched(guard, photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", guard)
    content = encoded(photo)
    with pytest.raises((Image.DecompressionBombWarning, Image.DecompressionBombError)):
        Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(load_image(content), photo)
    assert guard == Image.MAX_IMAGE_PIXELS


def test_where_a_plugin_asks_pillows_guard_itself_the_error_is_ours(photo, monkeypatch):
    content = encoded(photo, "WEBP")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    try:
        assert load_image(content).shape == photo.shape
    except ImageTooLargeError as error:
        assert "Pillow's own guard" in str(error)  # noqa: PT017 - only some releases of Pillow ask


# Warnings.


def warning_tiff():
    """A TIFF whose last tag points outside the file: Pillow warns and goes on."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 8, 7)).save(stream, "TIFF", software="x" * 40)
    content = bytearray(stream.getvalue())
    place = content.index(struct.pack("<HHI", 305, 2, 41)) + 8
    content[place : place + 4] = struct.pack("<I", len(content) + 99)
    return bytes(content)


def test_a_warning_of_pillow_does_not_stop_us_where_warnings_are_errors():
    content = warning_tiff()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(content)).load()
    assert seen, "the file does not make Pillow warn, so this test proves nothing"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        assert load_image(content)[0, 0].tolist() == [9, 8, 7]
        assert warnings.filters == filters


def test_many_threads_may_load_at_once(photo):
    contents = [encoded(photo), warning_tiff(), encoded(photo, "BMP")] * 8
    with ThreadPoolExecutor(8) as threads:
        loaded = list(threads.map(load_image, contents))
    for index in (0, 2, 21, 23):
        np.testing.assert_array_equal(loaded[index], photo)


# Pillow comes late, or not at all.


def test_pillow_is_imported_with_the_first_image():
    code = (
        "import sys, numpy as np, tellapart.image as image, tellapart.preprocess\n"
        "image.load_image(np.zeros((2, 2, 3), np.uint8))\n"
        "assert not any(name.split('.')[0] == 'PIL' for name in sys.modules), 'PIL'\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_without_pillow_the_error_is_the_install_command(photo, monkeypatch):
    real = builtins.__import__
    for name in [name for name in sys.modules if name.split(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)

    def refuse(name, *rest, **more):
        if name.split(".")[0] == "PIL":
            raise ImportError("No module named 'PIL'")
        return real(name, *rest, **more)

    content = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r'pip install "tellapart\[cpu\]"'):
        load_image(content)
    np.testing.assert_array_equal(load_image(photo), photo)


def test_every_refusal_is_an_image_error():
    kinds = (UnreadableImageError, TruncatedImageError, ImageTooLargeError)
    assert all(issubclass(kind, ImageError) for kind in kinds)
