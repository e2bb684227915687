from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from tellapart.errors import DataError  # noqa: E402
from tellapart.image import load_image  # noqa: E402
from tellapart.manifest import Preprocessing  # noqa: E402
from tellapart.preprocess import to_input  # noqa: E402
from tellapart_training.images import ImageSource, pixel_cache  # noqa: E402


def _png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(_png(index))
    return folder


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname="some/folder")
    return path


def test_a_folder_and_a_tar_give_the_same_bytes(folder: Path, archive: Path) -> None:
    one, two = ImageSource(folder), ImageSource(archive)
    assert one.names() == two.names() == ["0.png", "1.png", "2.png"]
    assert [one.read(name) for name in one.names()] == [two.read(name) for name in two.names()]


def test_cached_pixels_are_the_devices_own(archive: Path, tmp_path: Path) -> None:
    rule = Preprocessing(image_px=16)
    source = ImageSource(archive)
    pixels = pixel_cache(source, ["2.png", "0.png"], rule, tmp_path / "cache")
    assert pixels.shape == (2, 16, 16, 3)
    assert np.array_equal(pixels[0], to_input(load_image(source.read("2.png")), rule))
    stamp = next((tmp_path / "cache").iterdir()).stat().st_mtime_ns
    again = pixel_cache(source, ["2.png", "0.png"], rule, tmp_path / "cache")
    assert np.array_equal(again, pixels)
    assert [file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()] == [stamp]
    other = pixel_cache(source, ["2.png", "0.png"], Preprocessing(image_px=8), tmp_path / "cache")
    assert other.shape == (2, 8, 8, 3)


def test_bad_sources_and_images_are_named_and_leave_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images at"):
        ImageSource(tmp_path / "absent")
    compressed = tmp_path / "images.tar.gz"
    with tarfile.open(compressed, "w:gz") as tar:
        tar.add(folder, arcname=".")
    with pytest.raises(DataError, match=r"not an uncompressed \.tar"):
        ImageSource(compressed)
    source = ImageSource(folder)
    with pytest.raises(DataError, match=r"cannot read image .*9\.png"):
        source.read("9.png")
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image 'broken\.png' of .*leave it out"):
        pixel_cache(source, ["0.png", "broken.png"], Preprocessing(image_px=16), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
