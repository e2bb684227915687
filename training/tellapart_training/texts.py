"""Caption texts without their images: for the vocabulary and for the decoder's warm-up."""

from __future__ import annotations

from pathlib import Path

from tellapart_training.config import DataConfig
from tellapart_training.data import (
    CaptionRecord,
    ReadReport,
    normalised_records,
    read_captions,
    split_records,
)
from tellapart_training.images import say_on_stderr


def load_texts(config: DataConfig, *, seed: int) -> tuple[list[str], list[str]]:
    """Normalised texts to learn from, and those of the held-back images.

    `captions` gives its training splits less the tuning images; every file of `text` is taken whole.

    Args:
        config: of the data.
        seed: of the run; the same seed holds the same images back in every stage.

    Raises:
        DataError: a file that cannot be used.
    """
    report = ReadReport()
    train: list[str] = []
    tuning: list[str] = []

    def read(path: str) -> list[CaptionRecord]:
        records = read_captions(Path(path), bad_lines=config.bad_lines, report=report)
        return normalised_records(records, min_words=config.min_words, report=report)

    if config.captions:
        chosen, held = split_records(
            read(config.captions),
            train_splits=config.train_splits,
            tuning_images=config.tuning_images,
            seed=seed,
        )
        train.extend(text for record in chosen for text in record.captions)
        tuning.extend(text for record in held for text in record.captions)
    for path in config.text:
        train.extend(text for record in read(path) for text in record.captions)
    if report.summary():
        say_on_stderr(report.summary())
    return train[: config.limit_images or len(train)], tuning
