"""Measure captions and a retriever on a split: `evaluate(options)` from top to bottom.

A device bundle runs through the SDK, as a user would run it, without torch; a training checkpoint runs in
torch; captions that are there, or that people wrote, are scored as they are. Captions are scored against the
references as the file has them; retrieval queries are normalised captions, as the text tower learnt them.
Document frequencies of CIDEr-D come from all references of the split, even where `limit` scores fewer images,
so that a quick look and a full run are on one scale.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.errors import DataError, MissingExtraError, UsageError
from tellapart.truematch import read_benchmark
from tellapart_training.caption_sets import CaptionSet, given_set, human_set, model_set, without_reference
from tellapart_training.data import CaptionRecord, normalise_caption, read_captions
from tellapart_training.evaluate_options import EvaluateOptions
from tellapart_training.images import ImageSource
from tellapart_training.metrics import DocumentFrequencies, cider_d, corpus_bleu, metric_words, rouge_l
from tellapart_training.metrics.habits import habits
from tellapart_training.metrics.hallucination import object_hallucination
from tellapart_training.recall import recall_both_ways
from tellapart_training.run_folder import write_atomically
from tellapart_training.subjects import Subject, bundle_subject, checkpoint_subject

__all__ = ["EvaluateOptions", "EvaluationReport", "caption_figures", "evaluate"]


@dataclass(frozen=True)
class EvaluationReport:
    """What came out; `figures` are in [0, 1] except CIDEr-D (0 to 10), ranks, nats of fluency and counts."""

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
        beams = f", beams {self.model['beams']}" if self.model["beams"] else ""
        if self.model.get("guidance", 1.0) != 1:
            beams += f", guidance {self.model['guidance']:g}"
        lines = [f"{self.model['name']} ({self.model['sha256'][:12]}){beams}"]
        lines.append(f"{self.data['images']} images of split {self.data['split']!r}")
        lines.extend(f"  {name:<28}{value:>10.4f}" for name, value in self.figures.items())
        return "\n".join([*lines, f"  {'seconds':<28}{self.seconds:>10.1f}"])


def evaluate(options: EvaluateOptions) -> EvaluationReport:
    """Caption a split or take the captions given, score captions and retrieval, write the report.

    Raises:
        DataError: captions or images that cannot be used, or `captions_out` of another model.
        MissingExtraError: judges need torch, and it is not installed.
        TellapartError: a bundle or checkpoint that cannot be opened.
    """
    started_s = time.monotonic()
    records = [record for record in read_captions(options.captions) if options.split in ("", record.split)]
    if not records:
        raise DataError(f"{options.captions} has no record of split {options.split!r}: correct --split")
    frequencies = (
        DocumentFrequencies.load(options.df)
        if options.df
        else DocumentFrequencies.of_references([_words(record) for record in records])
    )
    chosen = records[: options.limit or len(records)]
    figures: dict[str, float] = {}
    if options.human:
        chosen, captions = human_set(chosen, turn=options.human)
        model = _source_facts(f"human caption {options.human}", "human", options.captions)
    elif options.captions_file is not None:
        captions = given_set(options.captions_file, chosen)
        model = _source_facts(options.captions_file.name, "captions", options.captions_file)
    else:
        captions, model, figures = _by_model(chosen, options)
    scored = without_reference(chosen, turn=options.leave_out) if options.leave_out else chosen
    references = [_words(record) for record in scored]
    figures = {**caption_figures(captions.texts, references, frequencies, cut=captions.cut), **figures}
    data = {
        "captions": str(options.captions), "split": options.split, "images": len(chosen),
        "references": sum(map(len, references)), "document_frequencies": frequencies.documents,
    }  # fmt: skip
    if options.judged:
        judged, facts = _judged([record.image for record in chosen], captions, options)
        figures.update(judged)
        data["judged"] = facts
    report = EvaluationReport(model, data, figures, round(time.monotonic() - started_s, 1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, report.to_json() + "\n")
    return report


def caption_figures(
    captions: Sequence[str],
    references: Sequence[Sequence[Sequence[str]]],
    frequencies: DocumentFrequencies,
    *,
    cut: Sequence[bool] | None = None,
) -> dict[str, float]:
    """Scores and habits of a set of captions.

    Args:
        captions: one for each image.
        references: for each image its references as `metric_words`.
        frequencies: of CIDEr-D.
        cut: which captions came to no end; None where unknown.

    Returns:
        Means of cider_d and rouge_l, corpus bleu_1 to bleu_4, the figures of `object_hallucination` and of
        `habits`.
    """
    words = [metric_words(caption) for caption in captions]
    bleu = corpus_bleu(words, references)
    return {
        "cider_d": float(np.mean(cider_d(words, references, frequencies=frequencies))),
        **{f"bleu_{order}": score for order, score in enumerate(bleu, start=1)},
        "rouge_l": float(np.mean(rouge_l(words, references))),
        **object_hallucination(words, references).figures(),
        **habits(words, cut=cut),
    }


def _by_model(
    records: Sequence[CaptionRecord], options: EvaluateOptions
) -> tuple[CaptionSet, dict[str, Any], dict[str, float]]:
    """A model's captions, its facts, and how well its own retriever finds human captions."""
    if options.images is None:
        raise UsageError("give --images: a model has to see them")
    figures: dict[str, float] = {}
    with _open_subject(options) as subject:
        captions, embeddings = model_set(subject, records, options, images=options.images)
        if subject.can_retrieve:
            texts = [normalise_caption(text) for record in records for text in record.captions]
            owners = np.array(
                [row for row, record in enumerate(records) for _ in record.captions], dtype=np.int64
            )
            figures = recall_both_ways(subject.embed_texts(texts) @ embeddings.T, owners)
        facts = {
            "name": subject.name, "sha256": subject.sha256, "kind": subject.kind, "beams": subject.beams,
            "guidance": subject.guidance,
        }  # fmt: skip
    return captions, facts, figures


def _open_subject(options: EvaluateOptions) -> AbstractContextManager[Subject]:
    if options.checkpoint is not None:
        return checkpoint_subject(options.checkpoint, beams=options.beams, threads=options.threads)
    return bundle_subject(
        options.model, beams=options.beams, threads=options.threads, guidance=options.guidance
    )


def _judged(
    names: Sequence[str], captions: CaptionSet, options: EvaluateOptions
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures under the judges, and who they are; torch is imported here."""
    if options.images is None:
        raise UsageError("give --images: a judge has to see them")
    try:
        import torch

        from tellapart_training.judged import Judges
    except ModuleNotFoundError as error:
        if error.name in ("torch", "safetensors"):
            raise MissingExtraError("train", f"judges need {error.name}, which is not installed") from error
        raise
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        judges = Judges.open(
            options.judges, images=ImageSource(options.images), names=names,
            cache=options.cache or Path(scratch), seed=options.seed, language_model=options.fluency,
            benchmark=read_benchmark(options.benchmark) if options.benchmark else None,
        )  # fmt: skip
        return judges.figures(names, captions.texts, cut=captions.cut), judges.facts()


def _words(record: CaptionRecord) -> list[list[str]]:
    return [metric_words(text) for text in record.captions]


def _source_facts(name: str, kind: str, path: Path) -> dict[str, Any]:
    """Captions without a model are named by the file that they are in."""
    return {"name": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "kind": kind, "beams": 0}
