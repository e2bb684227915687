"""The walk of `tellapart boost`: human captions in, boosted captions and a report out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from tellapart.bundle import open_bundle
from tellapart.commands.progress import Progress
from tellapart.errors import DataError
from tellapart.tokenizer import Tokenizer
from tellapart_training.boost.blend import BlendOptions
from tellapart_training.boost.chat_run import ChatRun, open_vision
from tellapart_training.boost.checks import Checker, Limits
from tellapart_training.boost.estimate import estimate
from tellapart_training.boost.extractive import Extractive
from tellapart_training.boost.figures import Tally
from tellapart_training.boost.gather import GatheredParser
from tellapart_training.boost.holistic import Holistic
from tellapart_training.boost.lexicon import load_lexicon
from tellapart_training.boost.options import BoostOptions
from tellapart_training.boost.outcome import Done, Outcome
from tellapart_training.boost.parsing import Parser, SpacyParser
from tellapart_training.boost.similarity import Gauge
from tellapart_training.boost.source import Subject, parsed, read_records
from tellapart_training.data import normalise_caption
from tellapart_training.images import ImageSource, say_on_stderr
from tellapart_training.run_folder import write_atomically

_BLOCK = 256


def boost(options: BoostOptions, *, parser: Parser | None = None) -> dict[str, Any]:
    """Boost the captions of a file.

    Args:
        options: what and how.
        parser: None opens spaCy's.

    Returns:
        The report: figures before and after, what was rejected and dropped, where the output is; of a dry run
        the estimate.

    Raises:
        DataError: captions, images or a journal that cannot be read, or not one image with a valid caption.
        MissingExtraError: the parser, the client of an endpoint, transformers or an expert's package is not
            installed.
        BudgetError: the budget of an endpoint is used up; the journal keeps what was answered.
        BackendError: the endpoint refuses everything; the journal keeps what was answered.
    """
    records, read = read_records(options)
    if options.chat.dry_run:
        return estimate(records, options)
    parser = GatheredParser(parser or SpacyParser())
    tally, lines = Tally(), {}
    with ExitStack() as stack:
        gauge = stack.enter_context(Gauge(ImageSource(options.images), options.scorer)) if (
            options.images is not None and "similarity" not in options.checks_off
        ) else None  # fmt: skip
        checker = make_checker(options, gauge)
        blend = BlendOptions(max_words=options.max_words, agreement=options.agreement)
        extractive = Extractive(parser, checker, blend, per_image=options.per_image)
        subjects = parsed(records, parser)
        run = None
        if options.generator == "extractive":
            vision = open_vision(options, parser=parser)
            holistic = Holistic(vision, checker, parser, max_words=options.max_words) if vision else None
            outcomes = _blended(subjects, extractive, holistic)
        else:
            run = stack.enter_context(ChatRun(options, checker=checker, parser=parser, fallback=extractive))
            outcomes = run.outcomes(subjects)
        progress = stack.enter_context(Progress(len(records)))
        for block in _blocks(_shown(outcomes, progress, run)):
            sentences = iter(parser.parse([one.text for done in block for one in done.outcome.captions]))
            for done in block:
                _count(tally, done.subject, done.outcome, gauge)
                for _ in done.outcome.captions:
                    tally.add_boosted(next(sentences), done.subject.sentences)
                if done.outcome.captions:
                    line = done.outcome.line(done.subject)
                    lines[done.place] = json.dumps(line, ensure_ascii=False)
        requests = run.report() if run is not None else {}
    if not lines:
        raise DataError(f"{options.captions}: not one image has a caption that passes; see --no-check")
    write_atomically(options.out, "\n".join(lines[place] for place in sorted(lines)) + "\n")
    report = {"generator": options.generator, "out": str(options.out), **tally.report()}
    if requests:
        report[options.generator] = requests
    if read.bad_lines:
        report["bad_lines"] = len(read.bad_lines)
        say_on_stderr(read.summary())
    if options.html is not None:
        write_page(options, report)
    return report


def _blended(
    subjects: Iterable[Subject], extractive: Extractive, holistic: Holistic | None
) -> Iterator[Done]:
    place = 0
    for block in _blocks(subjects):
        for subject, outcome in zip(block, extractive.write(block), strict=True):
            if holistic is not None:
                holistic.enrich(subject, outcome)
            yield Done(place, subject, outcome)
            place += 1


def _shown(outcomes: Iterable[Done], progress: Progress, run: ChatRun | None) -> Iterator[Done]:
    rejected = 0
    for done in outcomes:
        rejected += sum(done.outcome.rejected.values())
        progress.note = run.note(done.outcome) if run is not None else f"{rejected} rejected"
        progress.advance(failed=not done.outcome.captions)
        yield done


def make_checker(options: BoostOptions, gauge: Gauge | None = None) -> Checker:
    """The rules, with the length that the bundle's vocabulary allows.

    Args:
        options: lengths, and which rules are off.
        gauge: looks at photos, where there are some.

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
    look = gauge.fails if gauge is not None else None
    return Checker(load_lexicon(), limits, frozenset(options.checks_off), look)


def _clip_counter(folder: str) -> Any:
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no CLIP tokenizer ({error}): give a Hugging Face folder") from error
    return lambda text: len(tokenizer(text)["input_ids"])


def _count(tally: Tally, subject: Subject, outcome: Outcome, gauge: Gauge | None) -> None:
    tally.images += 1
    tally.refused.update(subject.refused)
    tally.rejected.update(outcome.rejected)
    for sentence in subject.sentences:
        tally.human.add(sentence)
    if outcome.captions:
        tally.written += 1
        tally.generators[outcome.generator + (" (fallback)" if outcome.fallback else "")] += 1
        tally.grafts += sum(len(written.grafts) for written in outcome.captions)
        tally.seen.update(name for written in outcome.captions for name, _ in written.seen)
        texts = [written.text for written in outcome.captions]
        cosines = gauge.similarities(subject.record.image, [*texts, *subject.texts]) if gauge else None
        if cosines is not None:
            tally.similarities[0].append(float(cosines[len(texts) :].mean()))
            tally.similarities[1].append(float(cosines[: len(texts)].mean()))
    else:
        tally.dropped[outcome.dropped] += 1


_Item = TypeVar("_Item")


def _blocks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    waiting = iter(items)
    while block := list(islice(waiting, _BLOCK)):
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
    if "dry_run" in report:
        return "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in report["dry_run"].items())
    before, after = report["human"], report["boosted"]
    lines = [
        f"{report['written']} of {report['images']} images boosted into {report['out']}",
        f"content words {before['content_words']:.2f} -> {after['content_words']:.2f} "
        f"({report['content_gain']:+.1%}), words {before['words']:.2f} -> {after['words']:.2f}, "
        f"attributes {before['attributes']:.2f} -> {after['attributes']:.2f}",
        f"word support {report['word_support']:.2%}, near-duplicates {report['near_duplicates']:.2%}, "
        f"vocabulary {before['vocabulary']} -> {after['vocabulary']}",
    ]
    if "similarity" in report:
        cosines = report["similarity"]
        lines.append(f"similarity with the photo {cosines['human']:.4f} -> {cosines['boosted']:.4f}")
    for name, title in (
        ("generators", "written by"), ("added_by_experts", "added by experts"),
        ("rejected", "rejected by rule"),
        ("captions_refused", "human captions refused"), ("images_dropped", "images dropped"),
        ("endpoint", "requests"), ("local", "requests"),
    ):  # fmt: skip
        if report.get(name):
            counts = ", ".join(f"{key} {value}" for key, value in report[name].items())
            lines.append(f"{title}: {counts}")
    return "\n".join(lines)
