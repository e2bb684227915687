"""Images of a folder or an uncompressed .tar, decoded once into a file of pixels that epochs read from.

Decoding and resizing are the device's own functions (`tellapart.image.load_image`,
`tellapart.preprocess.to_input`), so a network is trained on exactly the pixels it will be shown. The pixel
file is named by a hash of what is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tellapart.errors import DataError, ImageError
from tellapart.image import load_image
from tellapart.manifest import Preprocessing
from tellapart.preprocess import to_input

PixelArray = npt.NDArray[np.uint8]


class ImageSource:
    """Bytes of images by name, from a folder (searched recursively by relative path) or a .tar.

    A .tar is indexed once by offset and never unpacked. Names match by the last part of the path, so an
    archive that keeps its images in a folder needs no renaming.

    Raises:
        DataError: neither a folder nor a readable, uncompressed .tar.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[str, tuple[int, int]] = {}
        self._is_tar = path.is_file()
        if self._is_tar:
            self._index_tar()
        elif not path.is_dir():
            raise DataError(f"no images at {path}: expected a folder or an uncompressed .tar")

    def _index_tar(self) -> None:
        try:
            # Mode "r:" refuses compressed archives, whose offsets would mean nothing.
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        self._offsets[Path(member.name).name] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError) as error:
            raise DataError(
                f"{self.path} is not an uncompressed .tar ({error}); unpack it or store it plain"
            ) from error

    @property
    def identity(self) -> str:
        """Changes when the archive does; for a folder its path (files are then trusted to stay)."""
        if self._is_tar:
            status = self.path.stat()
            return f"{self.path.name}:{status.st_size}:{status.st_mtime_ns}"
        return str(self.path.resolve())

    def names(self) -> list[str]:
        """Sorted names of all images."""
        if self._is_tar:
            return sorted(self._offsets)
        return sorted(str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file())

    def read(self, name: str) -> bytes:
        """The bytes of one image.

        Raises:
            DataError: there is no such image.
        """
        if self._is_tar:
            if name not in self._offsets:
                raise DataError(
                    f"{self.path} has no image {name!r}: correct the captions file or data.images"
                )
            offset, size = self._offsets[name]
            with self.path.open("rb") as archive:
                archive.seek(offset)
                return archive.read(size)
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read image {self.path / name}: {error.strerror}") from error


def pixel_cache(
    source: ImageSource,
    names: Sequence[str],
    preprocessing: Preprocessing,
    folder: Path,
    *,
    say: Callable[[str], None] | None = None,
) -> PixelArray:
    """All images as one read-only memory map, made on the first call and read back on later ones.

    Args:
        source: where the bytes are.
        names: images, in the order of the rows.
        preprocessing: size and resize rule; pixels stay uint8 whatever `in_graph` says.
        folder: of cache files.
        say: receives progress lines.

    Returns:
        (n, s, s, 3) uint8, RGB.

    Raises:
        DataError: an image is missing or cannot be read; nothing half-written stays.
    """
    size = preprocessing.image_px
    rule = [source.identity, size, preprocessing.resize, preprocessing.filter, list(names)]
    key = hashlib.sha256(json.dumps(rule).encode()).hexdigest()[:20]
    path = folder / f"pixels-{key}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f"pixels-{key}.{os.getpid()}.tmp"
        try:
            _decode_all(source, names, preprocessing, scratch, say or _quiet)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    pixels: PixelArray = np.load(path, mmap_mode="r", allow_pickle=False)
    if pixels.shape != (len(names), size, size, 3):
        raise DataError(f"cache {path} holds {pixels.shape}: delete it and start again")
    return pixels


def _decode_all(
    source: ImageSource,
    names: Sequence[str],
    preprocessing: Preprocessing,
    scratch: Path,
    say: Callable[[str], None],
) -> None:
    size = preprocessing.image_px
    pixels = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        scratch, mode="w+", dtype=np.uint8, shape=(len(names), size, size, 3)
    )
    for row, name in enumerate(names):
        try:
            pixels[row] = to_pixels(source.read(name), preprocessing)
        except ImageError as error:
            raise DataError(
                f"image {name!r} of {source.path}: {error}; leave it out of the captions file"
            ) from error
        if row % 1000 == 999:
            say(f"decoded {row + 1} of {len(names)} images")
    pixels.flush()


def to_pixels(data: bytes, preprocessing: Preprocessing) -> PixelArray:
    """One encoded image as the (s, s, 3) uint8 that the network's `features` takes."""
    pixels = to_input(load_image(data), preprocessing)
    if pixels.dtype != np.uint8:
        raise DataError("training needs a preprocessing with in_graph = true: pixels are kept as uint8")
    return np.asarray(pixels, dtype=np.uint8)


def say_on_stderr(text: str) -> None:
    """The default place for progress lines."""
    print(text, file=sys.stderr, flush=True)


def _quiet(text: str) -> None:
    del text
