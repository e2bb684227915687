"""The files of a bundle, checked against its manifest: in a folder, or inside an uncompressed zip.

Nothing here follows a link, and nothing reads more than the manifest says there is. `bundle` is the face
of this module; it re-exports `verify_files`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tellapart.errors import BundleIntegrityError
from tellapart.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest
from tellapart.manifest_fields import check_path, path_key

if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

_CHUNK_BYTES = 1 << 20
# A named pipe would block for ever at open(); a link at the last moment must not be followed.
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def integrity_error(bundle: str, what: str) -> BundleIntegrityError:
    """A BundleIntegrityError that ends with what to do."""
    return BundleIntegrityError(f"{bundle}: {what}; fetch or export the bundle again", bundle=bundle)


def open_plain(path: Path, *, bundle: str) -> IO[bytes]:
    """Open a regular file for reading, and nothing else.

    Raises:
        BundleIntegrityError: absent, a link, a folder, a device or a pipe.
    """
    try:
        handle = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        raise integrity_error(
            bundle, f"{path.name} is missing, a link, or unreadable ({error.strerror})"
        ) from error
    stream = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if stream is None:
        os.close(handle)
        raise integrity_error(bundle, f"{path.name} is not a regular file")
    return stream


def read_manifest(folder: Path, *, bundle: str) -> tuple[bytes, Manifest]:
    """The manifest of a folder, as bytes and parsed.

    Raises:
        ManifestError: it is not what it should be.
        BundleVersionError: the bundle is newer than this tellapart.
        BundleIntegrityError: there is none.
    """
    if not os.path.lexists(folder / MANIFEST_NAME):
        raise BundleIntegrityError(
            f"{bundle} has no {MANIFEST_NAME}, so it is not a bundle or was never finished; "
            "name a folder that `tellapart export` made",
            bundle=bundle,
        )
    with open_plain(folder / MANIFEST_NAME, bundle=bundle) as stream:
        page = stream.read(MAX_MANIFEST_BYTES + 1)
    return page, parse_manifest(page, bundle=bundle)


def list_folder(root: Path, *, bundle: str) -> tuple[dict[str, int], set[str]]:
    """Every file below a folder with its size in bytes, and every folder below it.

    Raises:
        BundleIntegrityError: there is a link, a device or a pipe.
    """
    files: dict[str, int] = {}
    folders: set[str] = set()
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                mode = entry.stat(follow_symlinks=False)
                # A junction is Windows' other kind of link; it answers here with a reparse attribute.
                reparse = getattr(mode, "st_file_attributes", 0) & getattr(
                    stat, "FILE_ATTRIBUTE_REPARSE_POINT", 0
                )
                if stat.S_ISDIR(mode.st_mode) and not reparse:
                    folders.add(name)
                    waiting.append(name + "/")
                elif stat.S_ISREG(mode.st_mode) and not reparse:
                    files[name] = mode.st_size
                else:
                    raise integrity_error(
                        bundle, f"{name!a} is a link or a special file, which a bundle never holds"
                    )
    return files, folders


def _check_names(found: Mapping[str, int], folders: set[str], manifest: Manifest, *, bundle: str) -> None:
    """The files are those of the manifest, in name and in size."""
    missing = sorted(set(manifest.files) - set(found))
    if missing:
        raise integrity_error(
            bundle, f"{missing[0]!a} is missing ({len(missing)} of {len(manifest.files)} are)"
        )
    parents = {
        "/".join(path.split("/")[:depth])
        for path in manifest.files
        for depth in range(1, path.count("/") + 1)
    }
    extra = sorted(set(found) - set(manifest.files) - {MANIFEST_NAME}) + sorted(folders - parents)
    if extra:
        raise integrity_error(bundle, f"{extra[0]!a} is not listed in {MANIFEST_NAME} ({len(extra)} are not)")
    for path, entry in manifest.files.items():
        if found[path] != entry.bytes:
            raise integrity_error(bundle, f"{path!a} has {found[path]} bytes, expected {entry.bytes}")


def _check_content(
    source: IO[bytes], path: str, entry: FileEntry, *, bundle: str, sink: IO[bytes] | None
) -> None:
    """Hash a stream of known length, and copy it where a sink is given."""
    digest, left = hashlib.sha256(), entry.bytes
    while chunk := source.read(min(_CHUNK_BYTES, left + 1)):  # one byte more would show that it grew
        left -= len(chunk)
        if left < 0:
            break
        digest.update(chunk)
        if sink is not None:
            sink.write(chunk)
    if left != 0:
        raise integrity_error(bundle, f"{path!a} changed its length while it was read")
    if digest.hexdigest() != entry.sha256:
        raise integrity_error(
            bundle, f"{path!a} is damaged: its SHA-256 is {digest.hexdigest()}, not {entry.sha256}"
        )


def verify_files(root: Path, manifest: Manifest, *, bundle: str = "") -> None:
    """Prove that a folder holds exactly the files of its manifest, byte for byte.

    Args:
        root: the folder; links inside are refused.
        manifest: what should be there.
        bundle: how to call it in an error, the folder's path by default.

    Raises:
        BundleIntegrityError: a file is missing, not listed, a link, of another size or other content.
    """
    bundle = bundle or str(root)
    found, folders = list_folder(root, bundle=bundle)
    _check_names(found, folders, manifest, bundle=bundle)
    for path, entry in manifest.files.items():
        with open_plain(root / path, bundle=bundle) as source:
            _check_content(source, path, entry, bundle=bundle, sink=None)


def hash_file(path: Path, *, bundle: str) -> FileEntry:
    """Size and SHA-256 of one regular file."""
    digest, size = hashlib.sha256(), 0
    with open_plain(path, bundle=bundle) as source:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size, digest.hexdigest())


def _check_members(archive: ZipFile, size_bytes: int, *, bundle: str) -> tuple[dict[str, ZipInfo], set[str]]:
    """The members of a zip by name, and its folders; refuses what a bundle's zip never has."""
    import zipfile

    members: dict[str, ZipInfo] = {}
    folders: set[str] = set()
    seen: set[str] = set()
    for info in archive.infolist():
        name = info.filename
        folder = name.endswith("/")
        reason = check_path(name[:-1] if folder else name)
        if info.orig_filename != name:  # Python cuts a name at a NUL and turns the separator round
            reason = "is not written as it reads"
        if reason:
            raise integrity_error(bundle, f"the zip member {info.orig_filename!a} {reason}")
        key = path_key(name.rstrip("/"))
        if key in seen:
            raise integrity_error(bundle, f"the zip has {name!a} twice, letter case ignored")
        seen.add(key)
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise integrity_error(bundle, f"the zip member {name!a} is a link or a special file")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise BundleIntegrityError(
                f"{bundle}: the zip member {name!a} is compressed; "
                "a bundle is only stored: zip -0 -r bundle.zip .",
                bundle=bundle,
            )
        if folder:
            folders.add(name[:-1])
        else:
            members[name] = info
    if sum(info.file_size for info in members.values()) > size_bytes:
        raise integrity_error(bundle, "its zip members overlap")
    return members, folders


def unpack_zip(archive: Path, root: Path, *, bundle: str) -> tuple[bytes, Manifest]:
    """Copy a zip's files into an empty folder, each checked on its way.

    Args:
        archive: the zip.
        root: an empty, private folder.
        bundle: how to call it in an error.

    Returns:
        The manifest's bytes, and the manifest.

    Raises:
        ManifestError: the manifest is not what it should be.
        BundleVersionError: the bundle is newer than this tellapart.
        BundleIntegrityError: not a zip, compressed, encrypted, or files that the manifest does not name.
    """
    import zipfile

    try:
        with zipfile.ZipFile(archive) as opened:
            members, folders = _check_members(opened, archive.stat().st_size, bundle=bundle)
            if MANIFEST_NAME not in members:
                raise integrity_error(bundle, f"the zip has no {MANIFEST_NAME} at its top")
            with opened.open(members[MANIFEST_NAME]) as stream:
                page = stream.read(MAX_MANIFEST_BYTES + 1)
            manifest = parse_manifest(page, bundle=bundle)
            sizes = {name: info.file_size for name, info in members.items()}
            _check_names(sizes, folders, manifest, bundle=bundle)
            for path, entry in manifest.files.items():
                target = root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(members[path]) as source, target.open("xb") as sink:
                    _check_content(source, path, entry, bundle=bundle, sink=sink)
            (root / MANIFEST_NAME).write_bytes(page)
    # What zipfile raises for a damaged, encrypted or exotic archive is spread over all of these.
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        struct.error,
        ValueError,
    ) as error:
        raise integrity_error(bundle, f"it is no zip that can be read: {error}") from error
    return page, manifest


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it; what cannot be removed stays, without an error."""
    shutil.rmtree(folder, ignore_errors=True)
