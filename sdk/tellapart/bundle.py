"""Device bundles: opened only after every byte was checked, written whole or not at all.

A bundle is a folder, or one uncompressed zip of it, with `tellapart.json` naming each other file with size
and SHA-256. `open_bundle` reads nothing but that page until the rest was proved to be what it names: no
file too many or too few, no link, no path outside, no byte changed.

`staged_bundle` is the other side: files go into a scratch folder beside the goal, the manifest comes
last, and one rename makes it real:

    with staged_bundle("my-bundle") as scratch:
        export_graph(..., scratch / "vision.onnx")
        write_bundle(scratch, {"name": "mine", ...}, {"vocab.txt": b"..."})

A zip is unpacked into a private temporary folder, as runtimes want files; `Bundle.close` removes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tellapart.bundle_files import (
    hash_file,
    list_folder,
    read_manifest,
    remove_tree,
    unpack_zip,
    verify_files,
)
from tellapart.bundle_place import check_goal, swap_in, sync_tree, write_zip
from tellapart.errors import BundleError, BundleIntegrityError, ClosedError, ManifestError
from tellapart.manifest import FORMAT_VERSION, MANIFEST_NAME, GraphSpec, Manifest, parse_manifest
from tellapart.manifest_fields import check_path

__all__ = [
    "EMBEDDED",
    "Bundle",
    "open_bundle",
    "publish_bundle",
    "staged_bundle",
    "verify_files",
    "write_bundle",
]

EMBEDDED = Path(__file__).parent / "model"
"""The bundle inside the package."""


# Not every system has quotas.
_DISK_IS_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Bundle:
    """A verified bundle; a context manager, made by `open_bundle`.

    Attributes:
        manifest: what is inside.
        name: how the caller called it, for messages.
        root: the folder with the files; for a zip a temporary one.
        sha256: hash of the bytes of `tellapart.json`, 64 hexadecimal digits: the identity of the model.
    """

    def __init__(self, page: bytes, manifest: Manifest, *, name: str, root: Path, owns_root: bool) -> None:
        """Keep what `open_bundle` found; `owns_root` says that `root` is to be removed on close."""
        self.manifest, self.name, self.root = manifest, name, root
        self.sha256 = hashlib.sha256(page).hexdigest()
        self._closed = False
        # A finalizer also runs when the bundle is dropped unclosed, or at the end of the process.
        self._remove = weakref.finalize(self, remove_tree, root) if owns_root else None

    def __enter__(self) -> Bundle:
        """The bundle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Remove the temporary folder of a zip; further calls do nothing."""
        self._closed = True
        if self._remove is not None:
            self._remove()

    def path(self, name: str) -> Path:
        """The file that the manifest lists as `name`.

        Raises:
            BundleError: the manifest does not list it.
            ClosedError: the bundle was closed.
        """
        if self._closed:
            raise ClosedError(f"the bundle {self.name} was closed; open it again with open_bundle")
        if name not in self.manifest.files:
            listed = ", ".join(sorted(self.manifest.files)[:20])
            raise BundleError(f"{self.name} has no file {name!r}; it has {listed}", bundle=self.name)
        return self.root / name

    def read_bytes(self, name: str) -> bytes:
        """The content of one listed file, its length checked again.

        Raises:
            BundleError: the manifest does not list it.
            BundleIntegrityError: it changed or went away since the bundle was opened.
            ClosedError: the bundle was closed.
        """
        path, size = self.path(name), self.manifest.files[name].bytes
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleIntegrityError(
                f"{self.name}: {name} can no longer be read ({error.strerror}); open the bundle again",
                bundle=self.name,
            ) from error
        if len(content) != size:
            raise BundleIntegrityError(
                f"{self.name}: {name} changed while the bundle was open: "
                f"{len(content)} bytes, expected {size}; open the bundle again",
                bundle=self.name,
            )
        return content

    def graph(self, role: str, target: str = "onnx") -> GraphSpec:
        """The graph for a role on a target.

        Raises:
            BundleError: there is none; the message says which there are.
        """
        for graph in self.manifest.graphs:
            if graph.role == role and graph.target == target:
                return graph
        have = ", ".join(f"{graph.role} ({graph.target})" for graph in self.manifest.graphs) or "none"
        raise BundleError(f"{self.name} has no {role} graph for {target}; it has {have}", bundle=self.name)


def open_bundle(path: str | os.PathLike[str] | None = None) -> Bundle:
    """Open a bundle after checking every file of it.

    Args:
        path: a folder or an uncompressed zip; None is the bundle inside the package. No environment
            variable is read. The path itself may be a link, nothing inside may be one.

    Raises:
        ManifestError: `tellapart.json` is not what it should be.
        BundleVersionError: written by a newer tellapart.
        BundleIntegrityError: files missing, added, linked, escaping, or not the bytes the manifest names.
        BundleError: nothing there, or neither a folder nor a file.
    """
    if path is None:
        if not EMBEDDED.is_dir():
            raise BundleError(
                f"this installation of tellapart has no embedded bundle ({EMBEDDED} is absent); "
                "name a bundle, or install a release wheel",
                bundle=str(EMBEDDED),
            )
        path = EMBEDDED
    name = _name_of(path)
    try:
        if os.path.isdir(name):
            root = Path(name).resolve()
            page, manifest = read_manifest(root, bundle=name)
            verify_files(root, manifest, bundle=name)
            return Bundle(page, manifest, name=name, root=root, owns_root=False)
        if os.path.isfile(name):
            return _open_zip(Path(name), name=name)
    except OSError as error:  # no permission, a disk that fails or is full
        raise BundleError(f"the bundle {name!r} cannot be read: {error}", bundle=name) from error
    raise BundleError(
        f"there is no bundle at {name!r}; "
        f"expected a folder with {MANIFEST_NAME} or an uncompressed zip of one",
        bundle=name,
    )


def _open_zip(archive: Path, *, name: str) -> Bundle:
    root = Path(tempfile.mkdtemp(prefix="tellapart-"))
    try:
        page, manifest = unpack_zip(archive, root, bundle=name)
    except BaseException:  # Ctrl-C too must not leave the copies behind
        remove_tree(root)
        raise
    return Bundle(page, manifest, name=name, root=root, owns_root=True)


def _name_of(path: Any) -> str:
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(name, str) or not name or "\0" in name:
        raise BundleError(f"a bundle is named by a path, got {path!r}")
    return name


@contextmanager
def staged_bundle(out: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A scratch folder that becomes the bundle `out` when the block ends well.

    Inside, put files into the folder and call `write_bundle` on it. At the end the folder is opened as a
    bundle, which proves it whole, and renamed into place. After an exception, Ctrl-C included, nothing is
    left and whatever was at `out` is untouched.

    Args:
        out: where the bundle goes; a name ending in ".zip" makes an uncompressed zip. Its folder must exist.
        overwrite: replace a bundle that is there; something that is not a bundle is never replaced.

    Yields:
        The empty scratch folder, beside `out`.

    Raises:
        BundleError: `out` exists and may not be replaced, its folder does not, or the disk refuses.
        ManifestError: what was written is not a manifest.
        BundleIntegrityError: `write_bundle` was not called, or files came after it.
    """
    goal = Path(os.path.abspath(_name_of(out)))
    check_goal(goal, overwrite=overwrite)
    try:
        # The scratch folder proper is one level down, so that it has the rights of an ordinary folder.
        hidden = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".scratch", dir=goal.parent))
    except OSError as error:
        raise BundleError(f"cannot write beside {goal}: {error.strerror}", bundle=str(goal)) from error
    try:
        scratch = hidden / "bundle"
        scratch.mkdir()
        yield scratch
        publish_bundle(scratch, goal, overwrite=overwrite)
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise
        raise BundleError(
            f"cannot write {goal}: {error.strerror}; make room there and try again, nothing was changed",
            bundle=str(goal),
        ) from error
    finally:
        remove_tree(hidden)


def write_bundle(
    scratch: Path,
    fields: Mapping[str, Any] | Manifest,
    files: Mapping[str, bytes | Path] | None = None,
) -> Manifest:
    """Complete a scratch folder: copy files in, hash all that is there, write the manifest last.

    May be called again, for example after a report was measured on the first result.

    Args:
        scratch: the folder, as `staged_bundle` gives it; files written there before are taken up.
        fields: the manifest's keys, or a manifest to follow; "format_version" and "files" are made here.
        files: more files by their path in the bundle: the bytes, or a file to copy.

    Returns:
        The manifest that was written.

    Raises:
        ManifestError: the fields do not make a manifest; no `tellapart.json` is left in the folder.
        BundleIntegrityError: a link or special file is in the folder.
    """
    page_path = scratch / MANIFEST_NAME
    page_path.unlink(missing_ok=True)  # its presence means that the folder is whole, which it is not now
    for path, content in (files or {}).items():
        reason = check_path(path)
        if reason:
            raise ManifestError(f"cannot put {path!r} into a bundle: it {reason}", bundle=str(scratch))
        target = scratch / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            shutil.copyfile(content, target)
    page = dict(fields.to_fields() if isinstance(fields, Manifest) else fields)
    found, _ = list_folder(scratch, bundle=str(scratch))
    entries = {path: hash_file(scratch / path, bundle=str(scratch)) for path in sorted(found)}
    page["format_version"] = FORMAT_VERSION
    page["files"] = {path: {"bytes": entry.bytes, "sha256": entry.sha256} for path, entry in entries.items()}
    try:
        text = json.dumps(page, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(
            f"the manifest's fields are not plain JSON values: {error}", bundle=str(scratch)
        ) from error
    manifest = parse_manifest(text, bundle=str(scratch))
    partial = scratch / f"{MANIFEST_NAME}.part"
    partial.write_text(manifest.to_json(), encoding="utf-8", newline="\n")
    partial.replace(page_path)
    return manifest


def publish_bundle(scratch: Path, out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Prove a finished scratch folder whole and rename it into place.

    Args:
        scratch: a folder that `write_bundle` completed, on the disk of `out`, in a folder of its own (what
            is replaced is parked beside it). It is gone afterwards.
        out: where the bundle goes; ".zip" at the end makes an uncompressed zip.
        overwrite: replace a bundle that is there.

    Raises:
        BundleError: `out` exists and may not be replaced, or the disk refuses.
        ManifestError: the manifest is not what it should be.
        BundleIntegrityError: the folder is not what its manifest says, or has none.
    """
    goal = Path(os.path.abspath(_name_of(out)))
    check_goal(goal, overwrite=overwrite)
    with open_bundle(scratch) as bundle:
        paths = [*sorted(bundle.manifest.files), MANIFEST_NAME]
    try:
        ready = scratch
        if goal.suffix == ".zip":
            ready = scratch.with_name(scratch.name + ".zip")
            write_zip(ready, scratch, paths)
        else:
            sync_tree(scratch)
        swap_in(ready, goal, parked=scratch.with_name(scratch.name + ".replaced"))
    except OSError as error:
        raise BundleError(f"cannot write {goal}: {error}", bundle=str(goal)) from error
    remove_tree(scratch)
