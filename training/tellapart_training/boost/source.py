"""The images of a run: read, of the right split and shard, their captions cleaned and parsed in blocks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tellapart.errors import DataError
from tellapart_training.boost.options import BoostOptions
from tellapart_training.boost.parsing import Parser, Sentence
from tellapart_training.boost.texts import clean_captions
from tellapart_training.data import CaptionRecord, ReadReport, read_captions

_BLOCK = 256


@dataclass(frozen=True)
class Subject:
    """One image with what people wrote about it.

    Attributes:
        record: as read.
        texts: cleaned captions that can be used; may be none.
        sentences: their parses.
        refused: why each other caption was left out.
    """

    record: CaptionRecord
    texts: tuple[str, ...]
    sentences: tuple[Sentence, ...]
    refused: Counter[str]


def read_records(options: BoostOptions) -> tuple[list[CaptionRecord], ReadReport]:
    """The records of this run's split and shard, in the order of the file.

    Raises:
        DataError: a file that cannot be read, or nothing left of it.
    """
    report = ReadReport()
    records = read_captions(options.captions, bad_lines=options.bad_lines, report=report)
    if options.split:
        records = [record for record in records if record.split in options.split]
    which, many = options.part()
    # Not a slice of the file: the parts stay the same when lines are added or reordered.
    records = [record for record in records if shard_of(record.image, many) == which]
    records = records[: options.limit or len(records)]
    if not records:
        raise DataError(
            f"{options.captions} has no image in shard {options.shard}, split {list(options.split) or 'any'}"
        )
    return records, report


def shard_of(image: str, many: int) -> int:
    """Which of many shards an image is in, from 1; the same on every machine."""
    return int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") % many + 1


def parsed(records: Sequence[CaptionRecord], parser: Parser) -> Iterator[Subject]:
    """Records with their captions cleaned and parsed, block by block."""
    for start in range(0, len(records), _BLOCK):
        block = records[start : start + _BLOCK]
        cleaned = [clean_captions(record.captions) for record in block]
        sentences = iter(parser.parse([text for captions in cleaned for text in captions.texts]))
        for record, captions in zip(block, cleaned, strict=True):
            own = tuple(next(sentences) for _ in captions.texts)
            yield Subject(record, captions.texts, own, Counter(captions.refused))
