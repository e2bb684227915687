"""Caption records: read from four kinds of file, normalised, split, and cut into batches of token ids.

Readers know our JSON lines, COCO JSON, Karpathy JSON and Flickr8k token files, told apart by what is inside.
Every bad line is named with file, line number and what to do; `skip` mode counts them instead, so that
nothing is dropped in silence.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tellapart.errors import DataError


@dataclass(frozen=True)
class CaptionRecord:
    """One image and what people wrote about it.

    Attributes:
        image: file name of the image inside its folder or archive; "" for text without an image.
        split: as the file says, "" where it does not.
        captions: at least one, as written in the file.
    """

    image: str
    split: str
    captions: tuple[str, ...]


@dataclass
class ReadReport:
    """What was left out while reading, to be told to the user."""

    bad_lines: list[str] = field(default_factory=list)
    short_captions: int = 0

    def summary(self) -> str:
        """One line for the log, "" when nothing was left out."""
        parts = []
        if self.bad_lines:
            parts.append(f"{len(self.bad_lines)} bad lines skipped (first: {self.bad_lines[0]})")
        if self.short_captions:
            parts.append(f"{self.short_captions} captions too short")
        return "; ".join(parts)


_KEEP_INSIDE = re.compile(r"[^\w\s,'\-&/]|_")
_STRAY = re.compile(r"(?<!\w)['\-&/]+|['\-&/]+(?!\w)")
_CLITIC = re.compile(r"\s+'\s?(s|t|re|ve|ll|d|m)\b")


def normalise_caption(text: str) -> str:
    """A caption as the models learn it: lower case, no final stop, no stray punctuation.

    Hyphens, apostrophes, ampersands and slashes stay where they join letters, commas stay and hug the word
    before them; everything else that is not a letter or a digit goes. "A dog 's tri-colored coat , wet ."
    becomes "a dog's tri-colored coat, wet".
    """
    text = text.lower().replace("\u2019", "'").replace("`", "'")
    text = _CLITIC.sub(r"'\1", text)
    text = _KEEP_INSIDE.sub(" ", text)
    text = _STRAY.sub(" ", text)
    text = re.sub(r"\s*,[\s,]*", ", ", text)
    return re.sub(r"\s+", " ", text).strip(" ,")


def read_captions(
    path: Path, *, bad_lines: str = "error", report: ReadReport | None = None
) -> list[CaptionRecord]:
    """Read a captions file of any known kind.

    Args:
        path: our JSON lines (`{"image", "split", "captions"}`; `image_id` is accepted for `image`), a COCO
            captions JSON, a Karpathy JSON, or a Flickr8k token file (`name.jpg#0<TAB>caption`).
        bad_lines: "error" raises at the first bad line or entry; "skip" adds it to the report and goes on.
        report: receives what was left out.

    Raises:
        DataError: unreadable, of no known kind, empty, or a bad line in "error" mode.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read captions {path}: {error.strerror}; give an existing file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    reader = _Reader(path, bad_lines, report if report is not None else ReadReport())
    records = list(reader.read(text))
    if not records:
        raise DataError(
            f"{path} holds no captions: expected JSON lines, COCO or Karpathy JSON, or Flickr8k tokens"
        )
    return records


class _Reader:
    """One file on its way to records, with the rule for bad lines at hand."""

    def __init__(self, path: Path, bad_lines: str, report: ReadReport) -> None:
        self.path, self.bad_lines, self.report = path, bad_lines, report

    def bad(self, line: int, problem: str) -> None:
        message = f"{self.path}:{line}: {problem}"
        if self.bad_lines == "error":
            raise DataError(
                f'{message}; correct the line, or set data.bad_lines = "skip" to go on without it'
            )
        self.report.bad_lines.append(message)

    def read(self, text: str) -> Iterator[CaptionRecord]:
        whole = self._whole_json(text)
        if whole is not None:
            if isinstance(whole.get("annotations"), list):
                return self._coco(whole)
            if isinstance(whole.get("images"), list):
                return self._karpathy(whole["images"])
        first = next((line for line in text.splitlines() if line.strip()), "")
        if not first.lstrip().startswith("{") and re.match(r"[^\t]+#\d+\t", first):
            return self._flickr(text)
        return self._json_lines(text)

    @staticmethod
    def _whole_json(text: str) -> dict[str, Any] | None:
        # JSON lines break after their first line, so this fails at once on them.
        try:
            whole = json.loads(text)
        except ValueError:
            return None
        return whole if isinstance(whole, dict) and "captions" not in whole else None

    def _json_lines(self, text: str) -> Iterator[CaptionRecord]:
        seen: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                self.bad(number, f"not JSON ({error})")
                continue
            record = self._entry(entry, number)
            if record is None:
                continue
            if record.image in seen:
                self.bad(number, f"image {record.image!r} was already on line {seen[record.image]}")
                continue
            seen[record.image] = number
            yield record

    def _entry(self, entry: Any, number: int) -> CaptionRecord | None:
        if not isinstance(entry, dict):
            self.bad(number, f"expected an object with image and captions, got {type(entry).__name__}")
            return None
        image = entry.get("image", entry.get("image_id"))
        captions = entry.get("captions")
        if not isinstance(image, (str, int)) or isinstance(image, bool) or image == "":
            self.bad(number, f"'image' must be a file name, got {image!r}")
        elif not isinstance(captions, list) or not captions:
            self.bad(number, f"'captions' must be a list of at least one text, got {captions!r}")
        elif not all(isinstance(caption, str) and caption.strip() for caption in captions):
            self.bad(number, "every caption must be text that is not empty")
        elif not isinstance(entry.get("split", ""), str):
            self.bad(number, f"'split' must be text, got {entry['split']!r}")
        else:
            return CaptionRecord(str(image), entry.get("split", ""), tuple(captions))
        return None

    def _coco(self, whole: dict[str, Any]) -> Iterator[CaptionRecord]:
        names = {}
        for index, image in enumerate(whole.get("images", []), start=1):
            if isinstance(image, dict) and "id" in image:
                names[image["id"]] = str(image.get("file_name", image["id"]))
            else:
                self.bad(index, "entry of 'images' without an id")
        captions: dict[str, list[str]] = {}
        for index, note in enumerate(whole["annotations"], start=1):
            caption = note.get("caption") if isinstance(note, dict) else None
            if not isinstance(caption, str) or not caption.strip() or note.get("image_id") not in names:
                self.bad(
                    index, "entry of 'annotations' without a caption, or of an image that 'images' lacks"
                )
                continue
            captions.setdefault(names[note["image_id"]], []).append(caption)
        for name, texts in captions.items():
            yield CaptionRecord(name, "", tuple(texts))

    def _karpathy(self, images: list[Any]) -> Iterator[CaptionRecord]:
        for index, image in enumerate(images, start=1):
            sentences = image.get("sentences") if isinstance(image, dict) else None
            texts = [each.get("raw") for each in sentences or [] if isinstance(each, dict)]
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                self.bad(index, "entry of 'images' without sentences[].raw")
                continue
            if not isinstance(image.get("filename"), str):
                self.bad(index, "entry of 'images' without a filename")
                continue
            yield CaptionRecord(image["filename"], str(image.get("split", "")), tuple(map(str, texts)))

    def _flickr(self, text: str) -> Iterator[CaptionRecord]:
        captions: dict[str, list[str]] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            match = re.fullmatch(r"([^\t]+)#\d+\t(.*\S.*)", line)
            if match is None:
                self.bad(number, "expected name.jpg#0<TAB>caption")
                continue
            captions.setdefault(match[1], []).append(match[2])
        for name, texts in captions.items():
            yield CaptionRecord(name, "", tuple(texts))


def normalised_records(
    records: Sequence[CaptionRecord], *, min_words: int, report: ReadReport | None = None
) -> list[CaptionRecord]:
    """Records with normalised captions; short captions are dropped and counted, images left with none too."""
    report = report if report is not None else ReadReport()
    kept = []
    for record in records:
        captions = [normalise_caption(caption) for caption in record.captions]
        long_enough = tuple(caption for caption in captions if len(caption.split()) >= min_words)
        report.short_captions += len(captions) - len(long_enough)
        if long_enough:
            kept.append(CaptionRecord(record.image, record.split, long_enough))
    return kept


def split_records(
    records: Sequence[CaptionRecord], *, train_splits: Sequence[str], tuning_images: int, seed: int
) -> tuple[list[CaptionRecord], list[CaptionRecord]]:
    """The training images and the slice of them held back for selection.

    Args:
        records: all of a file.
        train_splits: splits that may be trained on.
        tuning_images: how many to hold back; drawn by `seed`, independent of the order of the file.
        seed: of the draw.

    Returns:
        (train, tuning), both in the order of the file.

    Raises:
        DataError: no record is in those splits, or too few to hold that many back.
    """
    chosen = [record for record in records if record.split in train_splits]
    if len(chosen) <= tuning_images:
        known = ", ".join(sorted({repr(record.split) for record in records}))
        raise DataError(
            f"splits {list(train_splits)} hold {len(chosen)} images, {tuning_images} of them to hold back: "
            f"the file has splits {known}; correct data.train_splits or lower data.tuning_images"
        )
    names = sorted(record.image for record in chosen)
    held = set(random.Random(seed).sample(names, tuning_images))
    train = [record for record in chosen if record.image not in held]
    return train, [record for record in chosen if record.image in held]
