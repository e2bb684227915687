"""Measure a captioner and retriever on a split: `evaluate(options)` from top to bottom.

A device bundle runs through the SDK, as a user would run it, without torch; a training checkpoint runs in
torch. Captions are scored against the references as the file has them; retrieval queries are normalised
captions, as the text tower learnt them. Document frequencies of CIDEr-D come from all references of the
split, even where `limit` scores fewer images, so that a quick look and a full run are on one scale.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.errors import DataError, UsageError
from tellapart_training.data import CaptionRecord, normalise_caption, read_captions
from tellapart_training.images import ImageSource, say_on_stderr
from tellapart_training.metrics import DocumentFrequencies, cider_d, corpus_bleu, metric_words, rouge_l
from tellapart_training.recall import recall_both_ways
from tellapart_training.run_folder import Progress, write_atomically
from tellapart_training.subjects import Seen, Subject, bundle_subject, checkpoint_subject


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure on what."""

    images: Path
    """Folder or uncompressed .tar."""
    captions: Path
    """File with the references."""
    split: str = "val"
    """Split to score; "" takes all records."""
    model: Path | None = None
    """Device bundle; None with no checkpoint either is the embedded one."""
    checkpoint: Path | None = None
    """Training checkpoint, run in torch."""
    out: Path | None = None
    """Report as JSON."""
    captions_out: Path | None = None
    """Captions as JSON lines; the first line names the model."""
    resume: bool = False
    """Keep captions that `captions_out` holds already."""
    beams: int | None = None
    """1 is greedy; None is the bundle's default, 3 for a checkpoint."""
    limit: int = 0
    """Only the first N images; 0 takes all."""
    batch_size: int = 16
    """Images decoded together."""
    threads: int = 0
    """0 leaves the runtime's choice."""
    df: Path | None = None
    """Stored document frequencies for CIDEr-D instead of those of the split."""

    def __post_init__(self) -> None:
        if self.model is not None and self.checkpoint is not None:
            raise UsageError("give --model or --checkpoint, not both")
        if (
            self.limit < 0
            or self.threads < 0
            or self.batch_size < 1
            or (self.beams is not None and self.beams < 1)
        ):
            raise UsageError("--limit and --threads must be at least 0, --batch-size and --beams at least 1")
        if self.resume and self.captions_out is None:
            raise UsageError("--resume needs --captions-out, the file to go on with")


@dataclass(frozen=True)
class EvaluationReport:
    """What came out; `figures` are in [0, 1] except CIDEr-D (0 to 10), counts and mean words."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    figures: Mapping[str, float]
    seconds: float

    def to_json(self) -> str:
        """The report as one JSON object."""
        entries = {
            "model": dict(self.model),
            "data": dict(self.data),
            **self.figures,
            "seconds": self.seconds,
        }
        return json.dumps(entries, indent=1)

    def table(self) -> str:
        """The report for people."""
        lines = [f"{self.model['name']} ({self.model['sha256'][:12]}), beams {self.model['beams']}"]
        lines.append(f"{self.data['images']} images of split {self.data['split']!r}")
        lines.extend(f"  {name:<22}{value:>10.4f}" for name, value in self.figures.items())
        return "\n".join([*lines, f"  {'seconds':<22}{self.seconds:>10.1f}"])


def evaluate(options: EvaluateOptions) -> EvaluationReport:
    """Caption a split, score captions and retrieval, write the report.

    Raises:
        DataError: captions or images that cannot be used, or `captions_out` of another model.
        TellapartError: a bundle or checkpoint that cannot be opened.
    """
    started_s = time.monotonic()
    records = [record for record in read_captions(options.captions) if options.split in ("", record.split)]
    if not records:
        raise DataError(f"{options.captions} has no record of split {options.split!r}: correct --split")
    references = [[metric_words(text) for text in record.captions] for record in records]
    frequencies = (
        DocumentFrequencies.load(options.df) if options.df else DocumentFrequencies.of_references(references)
    )
    chosen = records[: options.limit or len(records)]
    references = references[: len(chosen)]
    with _open_subject(options) as subject:
        captions, embeddings = _look_at_all(subject, chosen, options)
        figures = caption_figures(captions, references, frequencies)
        if subject.can_retrieve:
            texts = [normalise_caption(text) for record in chosen for text in record.captions]
            owners = np.array(
                [row for row, record in enumerate(chosen) for _ in record.captions], dtype=np.int64
            )
            rows = subject.embed_texts(texts)
            figures.update(recall_both_ways(rows @ embeddings.T, owners))
        model = {"name": subject.name, "sha256": subject.sha256, "kind": subject.kind, "beams": subject.beams}
    data = {
        "captions": str(options.captions), "split": options.split, "images": len(chosen),
        "references": sum(map(len, references)), "document_frequencies": frequencies.documents,
    }  # fmt: skip
    report = EvaluationReport(model, data, figures, round(time.monotonic() - started_s, 1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, report.to_json() + "\n")
    return report


def _open_subject(options: EvaluateOptions) -> AbstractContextManager[Subject]:
    if options.checkpoint is not None:
        return checkpoint_subject(options.checkpoint, beams=options.beams, threads=options.threads)
    return bundle_subject(options.model, beams=options.beams, threads=options.threads)


def caption_figures(
    captions: Sequence[str], references: Sequence[Sequence[Sequence[str]]], frequencies: DocumentFrequencies
) -> dict[str, float]:
    """Scores and habits of a set of captions.

    Args:
        captions: one for each image.
        references: for each image its references as `metric_words`.
        frequencies: of CIDEr-D.

    Returns:
        Means of cider_d and rouge_l, corpus bleu_1 to bleu_4, mean_words, vocabulary_used (different words),
        distinct_captions (share of captions that no other image got first).
    """
    words = [metric_words(caption) for caption in captions]
    bleu = corpus_bleu(words, references)
    return {
        "cider_d": float(np.mean(cider_d(words, references, frequencies=frequencies))),
        **{f"bleu_{order}": score for order, score in enumerate(bleu, start=1)},
        "rouge_l": float(np.mean(rouge_l(words, references))),
        "mean_words": float(np.mean([len(each) for each in words])),
        "vocabulary_used": float(len({word for each in words for word in each})),
        "distinct_captions": len({" ".join(each) for each in words}) / len(words),
    }


def _look_at_all(
    subject: Subject, records: Sequence[CaptionRecord], options: EvaluateOptions
) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
    """Captions and unit rows of all images, in order; captions already on disk are kept."""
    source = ImageSource(options.images)
    known = _kept_captions(subject, options)
    progress = Progress(len(records), done_steps=0, enabled=True)
    captions: dict[str, str] = {}
    rows = []
    for start in range(0, len(records), options.batch_size):
        names = [record.image for record in records[start : start + options.batch_size]]
        seen: Seen = subject.look([source.read(name) for name in names])
        rows.append(seen.embeddings)
        missing = [index for index, name in enumerate(names) if name not in known]
        for index, caption in zip(missing, subject.captions(seen, missing), strict=True):
            known[names[index]] = caption
            if options.captions_out is not None:
                line = json.dumps({"image": names[index], "caption": caption}, ensure_ascii=False)
                with options.captions_out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
        captions.update({name: known[name] for name in names})
        progress.show(start + len(names), 0, {})
    return [captions[record.image] for record in records], np.concatenate(rows)


def _kept_captions(subject: Subject, options: EvaluateOptions) -> dict[str, str]:
    """Captions of an interrupted run of the same model; a half-written last line is dropped."""
    path = options.captions_out
    if path is None:
        return {}
    head = {"model": subject.sha256, "beams": subject.beams}
    kept: dict[str, str] = {}
    if options.resume and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [entry for entry in map(_json_or_none, lines) if entry is not None]
        if entries and {key: entries[0].get(key) for key in head} != head:
            raise DataError(
                f"{path} was written by another model or with other beams: give another --captions-out, "
                "or leave --resume away to start anew"
            )
        kept = {
            entry["image"]: entry["caption"] for entry in entries[1:] if {"image", "caption"} <= entry.keys()
        }
        say_on_stderr(f"{len(kept)} captions kept from {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    body = [json.dumps({"image": name, "caption": text}, ensure_ascii=False) for name, text in kept.items()]
    write_atomically(path, "\n".join([json.dumps(head), *body]) + "\n")
    return kept


def _json_or_none(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
