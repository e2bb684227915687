"""Where a finished bundle goes: what may be replaced, the zip form, and the rename that makes it real.

Used by `bundle` alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from tellapart.bundle_files import remove_tree
from tellapart.errors import BundleError
from tellapart.manifest import MANIFEST_NAME


def check_goal(goal: Path, *, overwrite: bool) -> None:
    """Refuse a place where the bundle may not go, before any work is done for it."""
    if not goal.parent.is_dir():
        raise BundleError(f"cannot write {goal}: the folder {goal.parent} does not exist; make it first")
    if not os.path.lexists(goal):
        return
    if not overwrite:
        raise BundleError(f"{goal} exists; choose another name or ask to overwrite it", bundle=str(goal))
    folder = goal.is_dir() and not goal.is_symlink()
    bundle = (folder and ((goal / MANIFEST_NAME).is_file() or not any(goal.iterdir()))) or (
        goal.is_file() and goal.suffix == ".zip"
    )
    if not bundle:
        raise BundleError(
            f"{goal} is not a bundle, so it is not overwritten; choose another name", bundle=str(goal)
        )


def swap_in(ready: Path, goal: Path, *, parked: Path) -> None:
    """Rename `ready` to `goal`; what was there comes back if that fails."""
    if not os.path.lexists(goal):
        os.rename(ready, goal)
    elif ready.is_file() and goal.is_file():
        os.replace(ready, goal)  # files are replaced in one step
    else:
        try:
            os.rename(goal, parked)
            os.rename(ready, goal)
        except BaseException:  # Ctrl-C between the two as well
            if not os.path.lexists(goal):
                os.rename(parked, goal)
            raise
        remove_tree(parked)
    _sync(goal.parent)


def write_zip(archive: Path, folder: Path, paths: list[str]) -> None:
    """An uncompressed zip, the manifest last; equal folders give equal bytes, as times are left out."""
    import zipfile

    with archive.open("xb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as opened:
            for path in paths:
                info = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
                info.create_system, info.external_attr = 3, 0o100644 << 16
                with (folder / path).open("rb") as source, opened.open(info, "w") as sink:
                    shutil.copyfileobj(source, sink)
        stream.flush()
        os.fsync(stream.fileno())


def sync_tree(folder: Path) -> None:
    """Push a folder and all in it to the disk."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    """Push a file or folder to the disk, where the system has a way to."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder
    with contextlib.suppress(OSError):  # some network disks know no fsync; the rename is still one step
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
