"""A pile of photos by name, out of a folder or a tar: what parity, calibration and training look at.

Nothing is unpacked and only one photo is in memory at a time, so a pile may be larger than the machine.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from tellapart.errors import DataError
from tellapart.image import load_image
from tellapart.manifest import Preprocessing
from tellapart.preprocess import to_input
from tellapart.types import PixelArray

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""File names that count as photos."""


class Photos:
    """A folder (with its subfolders) or an uncompressed tar of photos; a context manager.

    Attributes:
        names: every photo's path inside, sorted.
    """

    def __init__(self, source: Path) -> None:
        """Read the names.

        Raises:
            DataError: nothing there, not a folder nor a tar, or no photo inside.
        """
        self.source = source
        self._tar: tarfile.TarFile | None = None
        if source.is_dir():
            found = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        else:
            try:
                self._tar = tarfile.open(source, "r:")  # noqa: SIM115 (`close` closes it)
                found = [member.name for member in self._tar if member.isfile()]
            except (OSError, tarfile.TarError) as error:
                self.close()
                raise DataError(
                    f"{source}: expected a folder of photos or a tar of them ({error})"
                ) from error
        self.names = tuple(sorted(name for name in found if name.lower().endswith(SUFFIXES)))
        if not self.names:
            self.close()
            raise DataError(f"{source}: no photo inside; looked for {', '.join(SUFFIXES)}")

    def __enter__(self) -> Photos:
        """The pile itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the tar, where it is one."""
        if self._tar is not None:
            self._tar.close()

    def read(self, name: str) -> PixelArray:
        """One photo, (h, w, 3) uint8 RGB upright.

        Raises:
            DataError: no such name.
            ImageError: it cannot be read.
        """
        return load_image(self.encoded(name))

    def encoded(self, name: str) -> Path | bytes:
        """One photo as its file: the path in a folder, the bytes out of a tar.

        Raises:
            DataError: no such name in the tar.
        """
        if self._tar is None:
            return self.source / name
        try:
            stream = self._tar.extractfile(name)
        except KeyError:
            stream = None
        if stream is None:
            raise DataError(f"{self.source}: no photo named {name!r} inside")
        return stream.read()

    def batches(
        self, names: Sequence[str], preprocessing: Preprocessing, *, batch_size: int
    ) -> Iterator[PixelArray]:
        """Graph inputs of some photos in order, through the device's own preprocessing.

        Yields:
            (b, ...) arrays as `to_input` makes them, b = `batch_size` but for the last.
        """
        for first in range(0, len(names), batch_size):
            group = names[first : first + batch_size]
            yield np.stack([to_input(self.read(name), preprocessing) for name in group])


def spread(names: Sequence[str], limit: int) -> list[str]:
    """At most `limit` of the names at even distances; the same ones every time."""
    if limit >= len(names):
        return list(names)
    return [names[index * len(names) // limit] for index in range(limit)]


def read_captions(file: Path, *, split: str | None = None) -> dict[str, list[str]]:
    """Captions by photo, from JSON lines `{"image", "split", "captions"}`.

    Args:
        file: the JSON lines.
        split: only records of this split; None takes all.

    Raises:
        DataError: a line that is not such a record (named by its number), or no record left.
    """
    captions: dict[str, list[str]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot read captions ({error})") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            image, texts = record["image"], record["captions"]
            if not isinstance(image, str) or not all(isinstance(text, str) for text in texts):
                raise TypeError("image must be text and captions a list of texts")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{file}, line {number}: expected {{"image": ..., "captions": [...]}} ({error!r})'
            ) from error
        if split is None or record.get("split") == split:
            captions[image] = list(texts)
    if not captions:
        raise DataError(f"{file}: no captions" + (f" of split {split!r}" if split else ""))
    return captions
