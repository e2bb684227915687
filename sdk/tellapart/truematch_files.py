"""The files of a TrueMatch benchmark: bags of image ids as published, our page beside them, captions by id.

    DIR/benchmark/3.json         a list of bags, a bag is a list of three image ids; so 5.json, 7.json
    DIR/benchmark.json           ours, may be absent: where the bags come from, and the groups of RD100
    DIR/truematch_images/        the photos, as COCO_val2014_000000000042.jpg for the id 42

An id is a whole number, as published, or the name of a photo. Everything is JSON. A pickle runs the code that
is in it when it is read, so files that are pickles are named and refused. `truematch` is the face of this
module.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from tellapart.bundle_files import remove_tree
from tellapart.bundle_place import swap_in, sync_tree
from tellapart.errors import DataError, UsageError
from tellapart.manifest_fields import check_path

__all__ = [
    "FACTS_NAME",
    "Bag",
    "Benchmark",
    "ImageId",
    "captions_of",
    "check_place",
    "image_name",
    "read_benchmark",
    "read_captions_file",
    "write_benchmark",
]

ImageId: TypeAlias = str | int
"""A COCO id, or the name of a photo."""

Bag: TypeAlias = tuple[ImageId, ...]
"""Ids of images that look alike, each once."""

FACTS_NAME = "benchmark.json"
_BAGS_FOLDER = "benchmark"
_FORMAT = 1
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".p")
_MAX_FILE_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Bags by size, and what is known about them."""

    folder: Path
    bags: Mapping[int, tuple[Bag, ...]]
    """By size, from 2, in rising order."""

    rd100: tuple[Bag, ...]
    """Groups of 100 images as one permutation was cut; empty where none is stored."""

    facts: Mapping[str, Any]
    """`benchmark.json` without the groups; empty for a benchmark that came without one."""

    sha256: str
    """Of bags and groups as such, however the files are written."""

    @property
    def name(self) -> str:
        """What `benchmark.json` calls it, else the folder's name."""
        return str(self.facts.get("name") or self.folder.resolve().name)

    def ids(self, *, bags: bool = True, rd100: bool = False) -> tuple[ImageId, ...]:
        """Every image once, in order of first appearance: of the bags, of the groups, or of both."""
        found: dict[ImageId, None] = {}
        groups = [bag for size in self.bags.values() for bag in size] if bags else []
        for group in (*groups, *(self.rd100 if rd100 else ())):
            found.update(dict.fromkeys(group))
        return tuple(found)

    def limited(self, bags: int) -> Benchmark:
        """The first so many bags of each size, and groups; the hash stays that of the whole."""
        if bags < 1:
            raise UsageError(f"expected a limit of at least one bag, got {bags}")
        first = {size: found[:bags] for size, found in self.bags.items()}
        return replace(self, bags=first, rd100=self.rd100[:bags])


def read_benchmark(folder: Path) -> Benchmark:
    """Read bags and, where there is one, `benchmark.json`.

    Args:
        folder: it holds `benchmark/<size>.json`, or the `<size>.json` themselves. Files of size 1 are passed
            over: a bag of one tells nothing apart.

    Raises:
        DataError: no bags there, or a file that is not what it should be; the message names it.
    """
    home = folder / _BAGS_FOLDER if (folder / _BAGS_FOLDER).is_dir() else folder
    try:
        files = {int(path.stem): path for path in home.iterdir() if _is_bag_file(path)}
    except OSError as error:
        raise DataError(
            f"{folder}: expected the folder of a benchmark ({error.strerror}); check the path"
        ) from error
    bags = {size: _parse_bags(_read_json(files[size]), size, str(files[size])) for size in sorted(files)}
    if not bags:
        raise DataError(
            f"{folder}: no bags; expected {_BAGS_FOLDER}/3.json and its like, each a list of bags. "
            "`tellapart truematch build` makes them"
        )
    facts: dict[str, Any] = {}
    rd100: tuple[Bag, ...] = ()
    page = folder / FACTS_NAME
    if page.is_file():
        facts = _read_json(page)
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise DataError(
                f'{page}: expected an object with "format": {_FORMAT}; '
                "remove it to use the bags alone, or update tellapart"
            )
        rd100 = _parse_bags(facts.pop("rd100", []), 100, f"{page}, rd100")
        _check_once(rd100, str(page))
    sha256 = _hash(bags, rd100)
    if facts.get("sha256", sha256) != sha256:
        raise DataError(
            f"{page}: its sha256 is not that of the bags beside it, so one of them was changed; "
            "copy the whole folder again"
        )
    return Benchmark(folder=folder, bags=bags, rd100=rd100, facts=facts, sha256=sha256)


def write_benchmark(
    folder: Path,
    *,
    bags: Mapping[int, Sequence[Sequence[ImageId]]],
    rd100: Sequence[Sequence[ImageId]] = (),
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Benchmark:
    """Write a benchmark, whole or not at all.

    Args:
        folder: made here; the folder around it must exist.
        bags: by size.
        rd100: groups of 100 ids, no id twice.
        facts: plain JSON values for `benchmark.json`: source, seed, how built, counts. "format", "sha256"
            and "rd100" are set here.
        overwrite: replace a benchmark that is there, as long as the folder holds nothing else.

    Returns:
        The benchmark as it reads back.

    Raises:
        UsageError: the folder is there and may not be replaced, or the one around it is absent.
        DataError: bags that are not what they should be.
    """
    goal = Path(os.path.abspath(folder))
    check_place(goal, overwrite=overwrite)
    checked = {size: _parse_bags(_as_lists(bags[size]), size, f"bags of {size}") for size in sorted(bags)}
    groups = _parse_bags(_as_lists(rd100), 100, "rd100")
    _check_once(groups, "rd100")
    page = {
        **(facts or {}),
        "format": _FORMAT,
        "sha256": _hash(checked, groups),
        "rd100": _as_lists(groups),
    }
    # Beside the goal, so that the last step is one rename on one disk.
    hidden = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".scratch", dir=goal.parent))
    try:
        scratch = hidden / "benchmark"
        (scratch / _BAGS_FOLDER).mkdir(parents=True)
        for size, found in checked.items():
            text = "[\n" + ",\n".join(_dump(list(bag)) for bag in found) + "\n]\n"
            (scratch / _BAGS_FOLDER / f"{size}.json").write_text(text, encoding="utf-8", newline="\n")
        text = json.dumps(page, ensure_ascii=True, allow_nan=False, indent=1)
        (scratch / FACTS_NAME).write_text(text + "\n", encoding="utf-8", newline="\n")
        read_benchmark(scratch)  # what we wrote is what we read
        sync_tree(scratch)
        swap_in(scratch, goal, parked=hidden / "replaced")
    finally:
        remove_tree(hidden)
    return read_benchmark(folder)


def check_place(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a benchmark may not become, before any work is done for it.

    Raises:
        UsageError: it is there and may not be replaced, or the folder around it is absent.
    """
    goal = Path(os.path.abspath(folder))
    if not goal.parent.is_dir():
        raise UsageError(f"cannot write {folder}: the folder {goal.parent} does not exist; make it first")
    if not os.path.lexists(goal):
        return
    if not goal.is_dir() or goal.is_symlink():
        raise UsageError(f"{folder} is there and is no folder; choose another name")
    inside = {entry.name for entry in goal.iterdir()}
    if inside and not overwrite:
        raise UsageError(f"{folder} is there; choose another name, or add --force to replace a benchmark")
    if inside and (FACTS_NAME not in inside or inside - {FACTS_NAME, _BAGS_FOLDER}):
        raise UsageError(f"{folder} holds more than a benchmark, so it is not replaced; choose another name")


def read_captions_file(path: Path) -> dict[str, str]:
    """Captions by image id, from JSON `{"id": "caption"}`; white space around a caption is taken off.

    Raises:
        DataError: unreadable, a pickle, or not such an object.
    """
    page = _read_json(path)
    if not isinstance(page, dict) or not page:
        raise DataError(f'{path}: expected {{"image id": "caption", ...}}, got {_shown(page)}')
    for key, text in page.items():
        if not isinstance(text, str):
            raise DataError(f"{path}: the caption of {key!r} must be a text, got {_shown(text)}")
    return {key: text.strip() for key, text in page.items()}


def captions_of(ids: Iterable[ImageId], captions: Mapping[str, str]) -> list[str]:
    """The captions of some images, in their order.

    Args:
        ids: images; a number is looked up by its digits.
        captions: as `read_captions_file` gives them.

    Raises:
        DataError: captions are missing; names some of them.
    """
    keys = [str(image) for image in ids]
    missing = [key for key in keys if key not in captions]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing)} of {len(keys)} images have no caption: {shown}; "
            "a benchmark is scored whole, so add them (keys are image ids as the benchmark writes them)"
        )
    return [captions[key] for key in keys]


def image_name(image: ImageId) -> str:
    """File name of an image: COCO's for a number, as the benchmark was published; a name is its own."""
    return f"COCO_val2014_{image:012d}.jpg" if isinstance(image, int) else image


def _is_bag_file(path: Path) -> bool:
    return path.suffix == ".json" and path.stem.isascii() and path.stem.isdigit() and int(path.stem) > 1


def _read_json(path: Path) -> Any:
    """One JSON file, the same key never twice in an object."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise DataError(
                f"{path}: over {_MAX_FILE_BYTES >> 20} MiB, which no benchmark is; check the path"
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    # Protocol 2 and later begin with this byte, which no text in UTF-8 does.
    if content[:1] == b"\x80" or path.suffix.lower() in _PICKLE_SUFFIXES:
        raise DataError(
            f"{path}: this is a Python pickle, which can run code when it is read, so it is refused; "
            'write the same as JSON: {"image id": "caption"}'
        )

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: {twice!r} comes twice; keep one")
        return dict(items)

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON ({error})") from error


def _parse_bags(page: Any, size: int, where: str) -> tuple[Bag, ...]:
    """Bags of one size; "rd100" may be empty, a file of bags may not."""
    if not isinstance(page, list) or not all(isinstance(bag, list) for bag in page):
        raise DataError(f"{where}: expected a list of bags, each a list of image ids, got {_shown(page)}")
    if not page and not where.endswith("rd100"):
        raise DataError(f"{where}: no bags inside")
    kinds = set()
    for place, bag in enumerate(page):
        if len(bag) != size:
            raise DataError(f"{where}: bag {place} has {len(bag)} images, expected {size}")
        for image in bag:
            reason = _wrong_id(image)
            if reason:
                raise DataError(f"{where}: bag {place} holds {_shown(image)}, which {reason}")
            kinds.add(type(image))
        if len(set(bag)) < size:
            raise DataError(f"{where}: bag {place} holds an image twice: {_shown(bag)}")
    if len(kinds) > 1:
        raise DataError(f"{where}: ids are numbers here and names there; use one kind")
    return tuple(tuple(bag) for bag in page)


def _wrong_id(image: Any) -> str:
    """Why this is no image id, or "" where it is one."""
    if isinstance(image, bool) or not isinstance(image, (int, str)):
        return "is neither a number nor a name"
    if isinstance(image, int):
        return "" if 0 <= image < 10**12 else "is not from 0 to 12 digits"
    return check_path(image)


def _check_once(groups: Iterable[Bag], where: str) -> None:
    flat = [image for group in groups for image in group]
    if len(set(flat)) < len(flat):
        raise DataError(f"{where}: an image is in two groups of rd100; a permutation holds each once")


def _hash(bags: Mapping[int, tuple[Bag, ...]], rd100: tuple[Bag, ...]) -> str:
    page = {"bags": {str(size): _as_lists(found) for size, found in bags.items()}, "rd100": _as_lists(rd100)}
    return hashlib.sha256(json.dumps(page, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def _as_lists(bags: Iterable[Iterable[ImageId]]) -> list[list[ImageId]]:
    return [list(bag) for bag in bags]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _shown(value: Any) -> str:
    """A value as an error shows it, cut to a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
