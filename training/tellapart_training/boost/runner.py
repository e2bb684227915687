"""The walk of `tellapart boost`: human captions in, boosted captions and a report out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tellapart.bundle import open_bundle
from tellapart.commands.progress import Progress
from tellapart.errors import DataError
from tellapart.tokenizer import Tokenizer
from tellapart_training.boost.blend import BlendOptions
from tellapart_training.boost.checks import Checker, Limits
from tellapart_training.boost.extractive import Extractive
from tellapart_training.boost.figures import Tally
from tellapart_training.boost.lexicon import load_lexicon
from tellapart_training.boost.options import BoostOptions
from tellapart_training.boost.outcome import Outcome
from tellapart_training.boost.parsing import Parser, SpacyParser
from tellapart_training.boost.source import Subject, parsed, read_records
from tellapart_training.data import normalise_caption
from tellapart_training.images import say_on_stderr
from tellapart_training.run_folder import write_atomically

_BLOCK = 256


def boost(options: BoostOptions, *, parser: Parser | None = None) -> dict[str, Any]:
    """Boost the captions of a file.

    Args:
        options: what and how.
        parser: None opens spaCy's.

    Returns:
        The report: figures before and after, what was rejected and dropped, where the output is.

    Raises:
        DataError: captions or images that cannot be read, or not one image with a valid caption.
        MissingExtraError: the parser is not installed.
    """
    records, read = read_records(options)
    parser = parser or SpacyParser()
    checker = make_checker(options)
    extractive = Extractive(
        parser,
        checker,
        BlendOptions(max_words=options.max_words, agreement=options.agreement),
        per_image=options.per_image,
    )
    tally, lines = Tally(), []
    with Progress(len(records)) as progress:
        for block in _blocks(parsed(records, parser)):
            outcomes = extractive.write(block)
            sentences = iter(parser.parse([w.text for one in outcomes for w in one.captions]))
            for subject, outcome in zip(block, outcomes, strict=True):
                _count(tally, subject, outcome)
                for _ in outcome.captions:
                    tally.add_boosted(next(sentences), subject.sentences)
                if outcome.captions:
                    lines.append(json.dumps(outcome.line(subject), ensure_ascii=False))
                progress.advance(failed=not outcome.captions)
    if not lines:
        raise DataError(f"{options.captions}: not one image has a caption that passes; see --no-check")
    write_atomically(options.out, "\n".join(lines) + "\n")
    report = {"generator": options.generator, "out": str(options.out), **tally.report()}
    if read.bad_lines:
        report["bad_lines"] = len(read.bad_lines)
        say_on_stderr(read.summary())
    if options.html is not None:
        write_page(options, report)
    return report


def make_checker(options: BoostOptions) -> Checker:
    """The rules, with the length that the bundle's vocabulary allows.

    Raises:
        BundleError: the bundle that names the vocabulary cannot be opened.
    """
    bundle = open_bundle(options.vocabulary)
    tokenizer = Tokenizer.from_bundle(bundle)
    limits = Limits(
        words=options.limit_words,
        pieces=bundle.manifest.vocabulary.max_text_tokens,
        # Counted as training will see it: lower case, without the stop; two more for start and end.
        count_pieces=lambda text: len(tokenizer.pieces(normalise_caption(text))) + 2,
        count_clip=_clip_counter(options.clip) if options.clip else None,
    )
    return Checker(load_lexicon(), limits, frozenset(options.checks_off))


def _clip_counter(folder: str) -> Any:
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no CLIP tokenizer ({error}): give a Hugging Face folder") from error
    return lambda text: len(tokenizer(text)["input_ids"])


def _count(tally: Tally, subject: Subject, outcome: Outcome) -> None:
    tally.images += 1
    tally.refused.update(subject.refused)
    tally.rejected.update(outcome.rejected)
    for sentence in subject.sentences:
        tally.human.add(sentence)
    if outcome.captions:
        tally.written += 1
        tally.generators[outcome.generator + (" (fallback)" if outcome.fallback else "")] += 1
        tally.grafts += sum(len(written.grafts) for written in outcome.captions)
    else:
        tally.dropped[outcome.dropped] += 1


def _blocks(subjects: Iterator[Subject]) -> Iterator[Sequence[Subject]]:
    while block := list(islice(subjects, _BLOCK)):
        yield block


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of an output.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def write_page(options: BoostOptions, report: dict[str, Any]) -> None:
    """The page of a finished output, with fifty random examples."""
    from tellapart_training.boost.page import boost_page, draw_examples

    if options.html is not None:
        examples = draw_examples(read_lines(options.out), options)
        write_atomically(options.html, boost_page(report, examples))


def summary(report: dict[str, Any]) -> str:
    """The report as a few lines for a person."""
    before, after = report["human"], report["boosted"]
    lines = [
        f"{report['written']} of {report['images']} images boosted into {report['out']}",
        f"content words {before['content_words']:.2f} -> {after['content_words']:.2f} "
        f"({report['content_gain']:+.1%}), words {before['words']:.2f} -> {after['words']:.2f}, "
        f"attributes {before['attributes']:.2f} -> {after['attributes']:.2f}",
        f"word support {report['word_support']:.2%}, near-duplicates {report['near_duplicates']:.2%}, "
        f"vocabulary {before['vocabulary']} -> {after['vocabulary']}",
    ]
    for name, title in (
        ("generators", "written by"), ("rejected", "rejected by rule"),
        ("captions_refused", "human captions refused"), ("images_dropped", "images dropped"),
    ):  # fmt: skip
        if report[name]:
            counts = ", ".join(f"{key} {value}" for key, value in report[name].items())
            lines.append(f"{title}: {counts}")
    return "\n".join(lines)
