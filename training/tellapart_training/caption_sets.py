"""Captions to be scored: written by a model and kept on disk as they come, given in a file, or by people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.errors import DataError
from tellapart.truematch import image_name, read_captions_file
from tellapart.types import FloatArray
from tellapart_training.data import CaptionRecord
from tellapart_training.evaluate_options import EvaluateOptions
from tellapart_training.images import ImageSource, say_on_stderr
from tellapart_training.run_folder import Progress, write_atomically
from tellapart_training.subjects import Seen, Subject


@dataclass(frozen=True)
class CaptionSet:
    """One caption for each image.

    Attributes:
        texts: in the order of the images.
        cut: which came to no end; None where nobody knows.
    """

    texts: list[str]
    cut: list[bool] | None = None


def human_set(records: Sequence[CaptionRecord], *, turn: int) -> tuple[list[CaptionRecord], CaptionSet]:
    """The captions that one person each wrote, and the records with the others as references.

    Args:
        records: images and their captions.
        turn: which caption, from 1; images with fewer, or with no other one, are left out and counted.

    Raises:
        DataError: no image has so many.
    """
    able = [record for record in records if len(record.captions) >= max(2, turn)]
    if not able:
        raise DataError(f"no image has a caption number {turn} beside others: lower --human")
    if len(able) < len(records):
        say_on_stderr(
            f"{len(records) - len(able)} images left out: they have no caption {turn} beside others"
        )
    return without_reference(able, turn=turn), CaptionSet([record.captions[turn - 1] for record in able])


def without_reference(records: Sequence[CaptionRecord], *, turn: int) -> list[CaptionRecord]:
    """Records less one caption each, the `turn`-th from 1.

    Raises:
        DataError: an image that would be left without any.
    """
    found = []
    for record in records:
        others = (*record.captions[: turn - 1], *record.captions[turn:])
        if not others:
            raise DataError(f"image {record.image!r} has one caption only: it cannot be left out")
        found.append(CaptionRecord(record.image, record.split, others))
    return found


def given_set(path: Path, records: Sequence[CaptionRecord]) -> CaptionSet:
    """Captions from a file, in the order of the records.

    Args:
        path: JSON `{"image": "caption"}`, where a COCO id may stand for its file; or `.jsonl` with "image"
            and "caption", as `--captions-out` writes it.
        records: the images.

    Raises:
        DataError: not such a file, or images without a caption.
    """
    cut: dict[str, bool] = {}
    if path.suffix == ".jsonl":
        entries = _json_lines(path)
        captions = {entry["image"]: entry["caption"] for entry in entries if "image" in entry}
        if entries and "model" in entries[0]:  # ours, which marks captions that were cut
            cut = {entry["image"]: bool(entry.get("cut")) for entry in entries if "image" in entry}
    else:
        captions = {
            image_name(int(key)) if key.isascii() and key.isdigit() else key: text
            for key, text in read_captions_file(path).items()
        }
    names = [record.image for record in records]
    missing = [name for name in names if name not in captions]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{path}: {len(missing)} of {len(names)} images have no caption: {shown}; add them")
    return CaptionSet([captions[name] for name in names], [cut[name] for name in names] if cut else None)


def model_set(
    subject: Subject, records: Sequence[CaptionRecord], options: EvaluateOptions, *, images: Path
) -> tuple[CaptionSet, FloatArray]:
    """Captions of a model, and its unit rows of the images (n, d); captions already on disk are kept."""
    source = ImageSource(images)
    known = _kept(subject, options)
    progress = Progress(len(records), done_steps=0, enabled=True)
    rows = []
    for start in range(0, len(records), options.batch_size):
        names = [record.image for record in records[start : start + options.batch_size]]
        seen: Seen = subject.look([source.read(name) for name in names])
        rows.append(seen.embeddings)
        missing = [index for index, name in enumerate(names) if name not in known]
        for index, caption in zip(missing, subject.captions(seen, missing), strict=True):
            known[names[index]] = (caption.text, caption.cut)
            if options.captions_out is not None:
                with options.captions_out.open("a", encoding="utf-8") as file:
                    file.write(_line(names[index], *known[names[index]]) + "\n")
        progress.show(start + len(names), 0, {})
    written = [known[record.image] for record in records]
    return CaptionSet([text for text, _ in written], [cut for _, cut in written]), np.concatenate(rows)


def _kept(subject: Subject, options: EvaluateOptions) -> dict[str, tuple[str, bool]]:
    """Captions of an interrupted run of the same model; a half-written last line is dropped."""
    path = options.captions_out
    if path is None:
        return {}
    head = {"model": subject.sha256, "beams": subject.beams}
    wanted = {**head, "guidance": subject.guidance}
    # Without guidance the line says nothing of it: files from before there was any can be gone on with.
    if subject.guidance != 1:
        head = wanted
    kept: dict[str, tuple[str, bool]] = {}
    if options.resume and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [entry for entry in map(_json_or_none, lines) if entry is not None]
        if entries and {key: entries[0].get(key, 1.0) for key in wanted} != wanted:
            raise DataError(
                f"{path} was written by another model, or with other beams or guidance: give another "
                "--captions-out, or leave --resume away to start anew"
            )
        kept = {
            entry["image"]: (entry["caption"], bool(entry.get("cut")))
            for entry in entries[1:]
            if {"image", "caption"} <= entry.keys()
        }
        say_on_stderr(f"{len(kept)} captions kept from {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [_line(name, text, cut) for name, (text, cut) in kept.items()]
    write_atomically(path, "\n".join([json.dumps(head), *body]) + "\n")
    return kept


def _line(name: str, text: str, cut: bool) -> str:
    entry: dict[str, Any] = {"image": name, "caption": text, **({"cut": True} if cut else {})}
    return json.dumps(entry, ensure_ascii=False)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}); check the path") from error
    found = []
    for number, line in enumerate(lines, start=1):
        entry = _json_or_none(line) if line.strip() else {}
        caption = isinstance(entry, dict) and all(
            isinstance(entry.get(key, ""), str) for key in ("image", "caption")
        )
        if entry is None or not caption or ("image" in entry) != ("caption" in entry):
            raise DataError(
                f'{path}:{number}: expected {{"image": "...", "caption": "..."}}, got {line[:80]!r}'
            )
        found.append(entry)
    return found


def _json_or_none(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
