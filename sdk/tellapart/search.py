"""An index of the images in a folder, kept on disk, and the nearest of them to a row.

    index = open_index("photos", retriever)
    for match in retriever.search("a red kite", index, top=5):
        print(match.score, match.name)

The index lies in a cache folder, one file for each pair of folder and bundle; nothing is ever written into
the folder itself. It remembers name, size and time of each file: what is new or changed is embedded again,
what is gone is dropped, the rest is read. A cache that cannot be read is made again; one that cannot be
written costs the next search time, and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tellapart.bulk import in_order
from tellapart.cache_folder import default_cache_dir
from tellapart.errors import ImageError, ShapeError, UsageError
from tellapart.types import FloatArray

if TYPE_CHECKING:
    from tellapart.retriever import Retriever

_LOG = logging.getLogger(__name__)
_FORMAT = 1

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""Endings, lower case, by which a file in a folder is taken for an image."""

Progress = Callable[[int, int], None]
"""Called with (images done, images to do) while an index is made."""


class Match(NamedTuple):
    """One image found."""

    name: str
    """Path relative to the folder, with "/"."""

    path: Path
    score: float
    """Cosine in [-1, 1]."""


class _Stamp(NamedTuple):
    """What tells whether a file changed."""

    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageIndex:
    """Images of a folder as unit rows."""

    folder: Path
    names: tuple[str, ...]
    """Paths relative to the folder, sorted."""

    rows: FloatArray
    """(n, d) float32 of unit length, in the order of the names."""

    failures: Mapping[str, str]
    """Name -> message for each image that could not be used."""

    model_sha256: str
    """Identity of the bundle that made the rows."""

    embedded: int = 0
    """How many images this call had to look at; the others came from the cache."""

    def nearest(self, row: FloatArray, *, top: int = 5) -> tuple[Match, ...]:
        """The images nearest to a row.

        Args:
            row: (d,) float32 of unit length.
            top: most matches wanted, from 1.

        Returns:
            Up to `top` matches, best first; equal scores in the order of the names.

        Raises:
            ShapeError: a row of another width.
            UsageError: `top` below 1.
        """
        if top < 1:
            raise UsageError(f"top must be at least 1, got {top}")
        if row.shape != self.rows.shape[1:]:
            raise ShapeError(f"the index has rows of shape {self.rows.shape[1:]}, got one of {row.shape}")
        scores = np.clip(self.rows @ row, -1.0, 1.0)
        best = np.argsort(-scores, kind="stable")[:top]
        return tuple(
            Match(self.names[place], self.folder / self.names[place], float(scores[place])) for place in best
        )


def open_index(
    folder: str | os.PathLike[str],
    retriever: Retriever,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    workers: int = 1,
) -> ImageIndex:
    """The index of a folder and all folders in it, brought up to date.

    Args:
        folder: links to other folders in it are not followed.
        retriever: embeds what is new.
        cache_dir: where indexes are kept; None is `$XDG_CACHE_HOME/tellapart`, or `~/.cache/tellapart`.
        progress: told after each image that had to be looked at.
        workers: images looked at side by side, from 1; most come through with a worker for each core on a
            retriever of `threads=1`.

    Raises:
        UsageError: no such folder, or `workers` below 1.
        BackendError: the runtime failed.
        ClosedError: the retriever was closed.
    """
    root = Path(os.path.abspath(os.fspath(folder)))
    if not root.is_dir():
        raise UsageError(f"{os.fspath(folder)} is not a folder; name one that holds images")
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    sha256 = retriever.bundle.sha256
    listing = {name: _stamp(root / name) for name in list_images(root)}
    path = _index_path(root, sha256, cache_dir)
    rows, failures = _read_index(path, root, sha256, retriever.width)
    known = {name: row for (name, stamp), row in rows.items() if listing.get(name) == stamp}
    # A failed image is tried again only when it changed: a folder's bad files would slow every search down.
    failed = {name: text for (name, stamp), text in failures.items() if listing.get(name) == stamp}
    fresh = [name for name in listing if name not in known and name not in failed]

    def embed(name: str) -> FloatArray | ImageError:
        try:
            row: FloatArray = retriever.embed_images([root / name])[0]
        except ImageError as error:
            return error
        return row

    results = in_order(embed, iter(fresh), workers=workers)
    try:
        for done, (name, found) in enumerate(zip(fresh, results, strict=True), 1):
            if isinstance(found, ImageError):
                failed[name] = str(found)
            else:
                known[name] = found
            if progress is not None:
                progress(done, len(fresh))
    finally:
        results.close()
        # Also after Ctrl-C: what was embedded so far need not be embedded again.
        names = tuple(name for name in listing if name in known)
        stacked = np.stack([known[name] for name in names]) if names else _no_rows(retriever.width)
        if fresh or len(names) + len(failed) != len(rows) + len(failures):
            _write_index(path, root, sha256, listing, names, stacked, failed)
    return ImageIndex(
        folder=root,
        names=names,
        rows=stacked,
        failures={name: failed[name] for name in listing if name in failed},
        model_sha256=sha256,
        embedded=len(fresh),
    )


def list_images(folder: Path) -> list[str]:
    """Paths of the image files in a folder and below, relative to it, with "/", sorted.

    Hidden files and folders, and links to folders, are passed over.
    """
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                found.append(Path(place, name).relative_to(folder).as_posix())
    return sorted(found)


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:  # a link to nothing, or gone since; reading it will say so
        return _Stamp(-1, -1)
    return _Stamp(status.st_size, status.st_mtime_ns)


def _index_path(folder: Path, sha256: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    where = default_cache_dir() if cache_dir is None else Path(cache_dir)
    # Folder and bundle in the name; the listing inside, so that one changed photo does not cost them all.
    key = hashlib.sha256(os.fsencode(folder)).hexdigest()
    return where / f"index-{key[:24]}-{sha256[:24]}.npz"


_Key = tuple[str, _Stamp]


def _read_index(
    path: Path, folder: Path, sha256: str, width: int
) -> tuple[dict[_Key, FloatArray], dict[_Key, str]]:
    """Rows and failures by name and stamp; empty where there is no index that can be used."""
    try:
        # Never pickle: what lies in a cache folder may come from anyone.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            rows, page = archive["rows"], json.loads(archive["page"].tobytes())
        header = {name: page[name] for name in ("format", "folder", "model_sha256")}
        if header != {"format": _FORMAT, "folder": os.fspath(folder), "model_sha256": sha256}:
            return {}, {}
        images = list(_keys(page["images"]))
        failures = {
            key: str(item["error"])
            for key, item in zip(_keys(page["failures"]), page["failures"], strict=True)
        }
        if rows.dtype != np.float32 or rows.shape != (len(images), width) or not np.isfinite(rows).all():
            raise ValueError(f"rows are {rows.shape} {rows.dtype}")
    except FileNotFoundError:
        return {}, {}
    except (
        OSError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
    ) as error:
        _LOG.warning("the index %s cannot be read and is made again: %s", path, error)
        return {}, {}
    return dict(zip(images, rows, strict=True)), failures


def _keys(items: list[dict[str, Any]]) -> Iterator[_Key]:
    for item in items:
        yield str(item["name"]), _Stamp(int(item["size_bytes"]), int(item["mtime_ns"]))


def _write_index(
    path: Path,
    folder: Path,
    sha256: str,
    listing: Mapping[str, _Stamp],
    names: tuple[str, ...],
    rows: FloatArray,
    failed: Mapping[str, str],
) -> None:
    """Write beside the goal and rename: whoever reads sees the old index or the new one, whole."""
    page = {
        "format": _FORMAT,
        "folder": os.fspath(folder),
        "model_sha256": sha256,
        "images": [{"name": name, **listing[name]._asdict()} for name in names],
        "failures": [
            {"name": name, **listing[name]._asdict(), "error": text} for name, text in failed.items()
        ],
    }
    content = io.BytesIO()
    # ASCII escapes also carry file names that are not Unicode.
    text = np.frombuffer(json.dumps(page).encode("ascii"), np.uint8)
    np.savez(content, rows=rows, page=text)
    partial = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, partial = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.getbuffer())
        os.replace(partial, path)
    except OSError as error:  # a full or read-only disk must not stop a search
        _LOG.warning("the index of %s could not be kept in %s: %s", folder, path.parent, error.strerror)
        if partial:
            Path(partial).unlink(missing_ok=True)


def _no_rows(width: int) -> FloatArray:
    return np.zeros((0, width), np.float32)
