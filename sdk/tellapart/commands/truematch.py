"""`tellapart truematch run`: captions in, recall@1 over bags of look-alikes out."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tellapart.bench import peak_rss_mib
from tellapart.bundle import Bundle
from tellapart.captioner import Captioner
from tellapart.commands.choices import decode_options, runtime_options
from tellapart.commands.outputs import say, write_atomically
from tellapart.commands.progress import Progress
from tellapart.doctor import examine_machine
from tellapart.errors import UsageError
from tellapart.retriever import Retriever
from tellapart.similarity import TIE_RULES
from tellapart.truematch import (
    BagScores,
    Benchmark,
    GroupRecall,
    ImageId,
    captions_of,
    groups_recall,
    random_groups,
    read_benchmark,
    read_captions_file,
    score_size,
)
from tellapart.truematch_images import BenchmarkImages, images_place
from tellapart.types import FloatArray, IntArray

__all__ = ["run"]


@dataclass(frozen=True, kw_only=True)
class _Written:
    """Captions of all images of a benchmark, and where they come from."""

    texts: list[str]
    model: dict[str, Any]
    readers: frozenset[str] | None
    """By which to know the retriever of the bundle that wrote them, see `_readers`; None for a file."""

    latency_ms: dict[str, float] | None
    peak_rss_mib: float | None
    truncated: int | None
    image_rows: FloatArray | None
    """Of the captioner's own retriever, where it judges."""


def run(args: argparse.Namespace) -> int:
    """Caption or read captions, score, report.

    Raises:
        TellapartError: usage, the benchmark, an image, a bundle, the runtime.
    """
    _check(args)
    benchmark = read_benchmark(args.folder)
    stored = bool(benchmark.rd100)
    if args.rd100 and not stored:
        benchmark = replace(benchmark, rd100=random_groups(benchmark.ids()))
        if not benchmark.rd100:
            raise UsageError(f"--rd100 needs 100 images, and the bags hold {len(benchmark.ids())}")
    if args.limit_bags is not None:
        benchmark = benchmark.limited(args.limit_bags)
    ids = benchmark.ids(rd100=args.rd100)
    with BenchmarkImages(images_place(benchmark, args.images)) as images:
        images.require(ids)
        if args.captions is not None:
            written = _read(args, ids)
        else:
            written = _caption(args, ids, images)
            if args.save_captions is not None:
                kept = {str(image): text for image, text in zip(ids, written.texts, strict=True)}
                text = json.dumps(kept, ensure_ascii=False, indent=0)
                write_atomically(args.save_captions, text + "\n")
                say(f"wrote {args.save_captions}")
        caption_rows, image_rows, scorer = _embed(args, ids, images, written)
        row_of = {image: row for row, image in enumerate(ids)}
        scores = {
            size: score_size(caption_rows, image_rows, _rows(bags, row_of), ties=args.ties)
            for size, bags in benchmark.bags.items()
        }
        among_100 = None
        if args.rd100:
            groups = _rows(benchmark.rd100, row_of)
            among_100 = groups_recall(caption_rows, image_rows, groups, ties=args.ties)
        record = _record(args, benchmark, written, scorer, scores, among_100, stored=stored)
        if args.html is not None:
            from tellapart.commands.truematch_html import benchmark_page

            page = benchmark_page(
                record,
                benchmark,
                scores,
                captions=dict(zip(ids, written.texts, strict=True)),
                images=images,
                bags_per_size=args.html_bags,
                max_megapixels=args.max_megapixels,
            )
            write_atomically(args.html, page)
            say(f"wrote {args.html}")
    if args.json:
        print(json.dumps(record, ensure_ascii=False, allow_nan=False))
    else:
        _print_table(record)
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be known to fail before any work is done."""
    for option, path in (("--html", args.html), ("--save-captions", args.save_captions)):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"the folder of {option} {path} does not exist; make it first")
        if path is not None and args.captions is not None and path.resolve() == args.captions.resolve():
            raise UsageError(f"{option} {path} is the captions file; name another one")
    if args.captions is not None and args.save_captions is not None:
        raise UsageError("--save-captions keeps captions made here, and --captions brings them; drop one")
    if args.html_bags < 1:
        raise UsageError(f"--html-bags must be an integer of at least 1, got {args.html_bags}")


def _read(args: argparse.Namespace, ids: Sequence[ImageId]) -> _Written:
    captions = read_captions_file(args.captions)
    texts = captions_of(ids, captions)
    if len(captions) > len(ids):
        say(f"{args.captions} has {len(captions) - len(ids)} captions of other images, which are not used")
    sha256 = hashlib.sha256(args.captions.read_bytes()).hexdigest()
    return _Written(
        texts=texts,
        model={"captions": args.captions.name, "sha256": sha256},
        readers=None,
        latency_ms=None,
        peak_rss_mib=None,
        truncated=None,
        image_rows=None,
    )


def _caption(args: argparse.Namespace, ids: Sequence[ImageId], images: BenchmarkImages) -> _Written:
    """Every image alone, one after the other, timed from its file to its caption."""
    options = decode_options(args)
    captions, rows, times_ms = [], [], []
    with Captioner.open(args.model, runtime=runtime_options(args)) as captioner:
        own = captioner.retriever if args.scorer is None else None
        with Progress(len(ids)) as progress:
            for image in ids:
                encoded = images.encoded(image)
                started_s = time.perf_counter()
                view = captioner.look(encoded)
                captions.append(captioner.caption(view, options=options))
                times_ms.append((time.perf_counter() - started_s) * 1000.0)
                if own is not None:
                    rows.append(own.embed_images([view])[0])
                progress.advance()
        # The first caption pays for opening the graphs.
        p50, p95 = np.percentile(times_ms[1:] or times_ms, [50, 95])
        given = {name: value for name, value in asdict(options).items() if value is not None}
        return _Written(
            texts=[caption.text for caption in captions],
            model={**_name(captioner.bundle), "options": given},
            readers=_readers(captioner.bundle),
            latency_ms={"p50": round(float(p50), 3), "p95": round(float(p95), 3)},
            peak_rss_mib=peak_rss_mib(),
            truncated=sum(caption.truncated for caption in captions),
            image_rows=np.stack(rows) if own is not None else None,
        )


def _embed(
    args: argparse.Namespace, ids: Sequence[ImageId], images: BenchmarkImages, written: _Written
) -> tuple[FloatArray, FloatArray, dict[str, Any]]:
    """Captions and images as the scorer sees them, and the scorer's name."""
    with ExitStack() as stack:
        runtime = runtime_options(args)
        scorer = stack.enter_context(Retriever.open(args.scorer or args.model, runtime=runtime))
        distinct = list(dict.fromkeys(written.texts))
        row_of = {text: row for row, text in enumerate(distinct)}
        caption_rows = scorer.embed_texts(distinct)[[row_of[text] for text in written.texts]]
        image_rows = written.image_rows
        if image_rows is None:
            rows = []
            with Progress(len(ids)) as progress:
                for image in ids:
                    rows.append(scorer.embed_images([images.encoded(image)])[0])
                    progress.advance()
            image_rows = np.stack(rows)
        is_own = None if written.readers is None else bool(written.readers & _readers(scorer.bundle))
        return caption_rows, image_rows, {**_name(scorer.bundle), "is_own": is_own}


def _record(
    args: argparse.Namespace,
    benchmark: Benchmark,
    written: _Written,
    scorer: Mapping[str, Any],
    scores: Mapping[int, BagScores],
    among_100: GroupRecall | None,
    *,
    stored: bool,
) -> dict[str, Any]:
    """The contract's JSON, and what a reader needs to judge it."""
    machine = examine_machine()
    permutation = "stored with the benchmark" if stored else "drawn here with seed 0"
    rss_mib = peak_rss_mib() if written.peak_rss_mib is None else written.peak_rss_mib
    return {
        "benchmark": {"name": benchmark.name, "folder": str(args.folder), "sha256": benchmark.sha256},
        "bags": {str(size): found.to_record() for size, found in scores.items()},
        "rd100": None if among_100 is None else {**among_100.to_record(), "permutation": permutation},
        "ties": args.ties,
        "model": written.model,
        "scorer": dict(scorer),
        "captions": {
            "images": len(written.texts),
            "distinct": len(set(written.texts)),
            "truncated": written.truncated,
        },
        "latency_ms": written.latency_ms,
        "peak_rss_mib": None if rss_mib is None else round(rss_mib, 1),
        "device": {
            "system": machine.system,
            "cpu": machine.cpu,
            "cores": machine.cores,
            "memory_mib": machine.memory_mib,
            "packages": {name: version for name, version in machine.packages.items() if version},
            "backend": args.backend,
            "threads": args.threads,
        },
        "notes": _notes(args, benchmark, scorer),
    }


def _notes(args: argparse.Namespace, benchmark: Benchmark, scorer: Mapping[str, Any]) -> list[str]:
    """What makes the figures look better or worse than they are."""
    notes = []
    if scorer["is_own"]:
        notes.append(
            "The scorer is the model's own retriever, which flatters the model: it may have learnt to please "
            "it. Judge with --scorer ANOTHER-BUNDLE."
        )
    elif scorer["is_own"] is None:
        notes.append(
            "The captions come from a file, so it is not known whether their model was trained with this "
            "scorer; if it was, the figures flatter it."
        )
    how = benchmark.facts.get("how")
    embedding = how.get("embedding") if isinstance(how, dict) else None
    if isinstance(embedding, dict) and embedding.get("sha256") == scorer["sha256"]:
        notes.append("The bags were mined with this scorer's own embedding, so they are hardest for it.")
    if args.limit_bags is not None:
        notes.append(f"Only the first {args.limit_bags} bags of each size: a quick look, not a result.")
    return notes


def _print_table(record: Mapping[str, Any]) -> None:
    model, scorer = record["model"], record["scorer"]
    print(f"benchmark  {record['benchmark']['name']}, {record['benchmark']['sha256'][:12]}")
    print(f"captions   {model.get('name', model.get('captions'))}, {model['sha256'][:12]}")
    print(f"scorer     {scorer['name']}, {scorer['sha256'][:12]}")
    print(f"ties       {record['ties']}")
    print(f"{'':<8}{'bags':>6}{'images':>8}{'recall@1':>10}   95 % interval{'chance':>9}", end="")
    print("".join(f"{rule:>12}" for rule in TIE_RULES))
    lines = [(f"of {size}", found["bags"], found) for size, found in record["bags"].items()]
    if record["rd100"] is not None:
        lines.append(("RD100", record["rd100"]["groups"], record["rd100"]))
    for label, count, found in lines:
        low, high = (100 * end for end in found["ci95"])
        print(
            f"{label:<8}{count:>6}{found['images']:>8}{100 * found['recall_at_1']:>8.1f} %"
            f"   {low:>5.1f} to {high:>5.1f}{100 * found['chance']:>7.1f} %"
            + "".join(f"{100 * found[f'recall_at_1_{rule}']:>10.1f} %" for rule in TIE_RULES)
        )
    if record["rd100"] is not None:
        found = record["rd100"]
        print(
            f"RD100 groups {found['permutation']}: recall@5 {100 * found['recall_at_5']:.1f} %, "
            f"rank of the own image {found['mean_rank']:.2f} in the mean, {found['median_rank']:g} the median"
        )
    distinct = record["captions"]
    print(f"{distinct['distinct']} different captions of {distinct['images']} images")
    if record["latency_ms"] is not None:
        latency = record["latency_ms"]
        print(f"a caption took {latency['p50']:.1f} ms (median), {latency['p95']:.1f} ms (95th percentile)")
    if record["peak_rss_mib"] is not None:
        print(f"peak memory {record['peak_rss_mib']:.0f} MiB on {record['device']['cpu']}")
    for note in record["notes"]:
        print(f"note: {note}")


def _rows(bags: Sequence[Sequence[ImageId]], row_of: Mapping[ImageId, int]) -> IntArray:
    """(m, k) int64, rows of the images of bags of one size."""
    return np.array([[row_of[image] for image in bag] for bag in bags], np.int64)


def _readers(bundle: Bundle) -> frozenset[str]:
    """Hashes of the bundle and of its text graphs.

    Captioners that were trained further from one start often share a retriever: the bundles then differ, the
    text graphs do not.
    """
    texts = (graph.file for graph in bundle.manifest.graphs if graph.role == "text")
    return frozenset([bundle.sha256, *(bundle.manifest.files[file].sha256 for file in texts)])


def _name(bundle: Bundle) -> dict[str, Any]:
    return {"name": bundle.manifest.name, "sha256": bundle.sha256}
