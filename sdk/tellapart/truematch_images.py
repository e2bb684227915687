"""Where the photos of a benchmark are: ids in, files out, from a folder or an uncompressed tar.

Nothing is unpacked. A tar that keeps its photos in a folder needs no renaming: a name that is not found as it
stands is looked for as the last part of a path, where only one photo is called so.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from types import TracebackType

from tellapart.errors import DataError, UsageError
from tellapart.photos import Photos
from tellapart.truematch_files import Benchmark, ImageId, image_name

__all__ = ["BenchmarkImages", "images_place"]

IMAGE_FOLDERS = ("truematch_images", "images")
"""Where photos lie inside the folder of a benchmark, as it was published and in short."""


class BenchmarkImages:
    """Photos by image id; a context manager.

    Attributes:
        photos: the folder or tar.
    """

    def __init__(self, source: Path) -> None:
        """Read the names.

        Raises:
            DataError: neither a folder nor an uncompressed tar, or no photo inside.
        """
        self.photos = Photos(source)
        self._exact = frozenset(self.photos.names)
        self._by_last_part: dict[str, list[str]] = {}
        for name in self.photos.names:
            self._by_last_part.setdefault(PurePosixPath(name).name, []).append(name)

    def __enter__(self) -> BenchmarkImages:
        """The photos themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        self.close()

    def close(self) -> None:
        """Close the tar, where it is one."""
        self.photos.close()

    def name_of(self, image: ImageId) -> str | None:
        """The photo's path inside; None where there is none, or several are called so."""
        name = image_name(image)
        if name in self._exact:
            return name
        found = self._by_last_part.get(PurePosixPath(name).name, [])
        return found[0] if len(found) == 1 else None

    def require(self, images: Iterable[ImageId]) -> None:
        """Make sure that every photo is there, before hours of work find out.

        Raises:
            DataError: photos are missing, or cannot be told by their names; names some of them.
        """
        wanted = list(images)
        missing = [image_name(image) for image in wanted if self.name_of(image) is None]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise DataError(
                f"{self.photos.source}: {len(missing)} of {len(wanted)} photos are missing or not alone "
                f"with their name: {shown}; name the right folder or tar with --images"
            )

    def encoded(self, image: ImageId) -> Path | bytes:
        """The photo as its file, as `Photos.encoded`.

        Raises:
            DataError: no such photo.
        """
        name = self.name_of(image)
        if name is None:
            self.require([image])
        return self.photos.encoded(str(name))


def images_place(benchmark: Benchmark, images: Path | None = None) -> Path:
    """The folder or tar of a benchmark's photos.

    Args:
        benchmark: its own folders are tried first, then "images" of its `benchmark.json`, which is relative
            to the benchmark's folder.
        images: named by the user; then nothing else is tried.

    Raises:
        UsageError: none was named and none is where it could be.
    """
    if images is not None:
        return images
    for name in IMAGE_FOLDERS:
        if (benchmark.folder / name).is_dir():
            return benchmark.folder / name
    told = benchmark.facts.get("images")
    if isinstance(told, str) and told and (benchmark.folder / told).exists():
        return benchmark.folder / told
    where = f", nor at {told!r} as its benchmark.json says" if told else ""
    raise UsageError(
        f"no photos in {benchmark.folder} ({' or '.join(IMAGE_FOLDERS)}){where}; "
        "name their folder or tar with --images"
    )
