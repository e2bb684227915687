"""`tellapart truematch build`: a TrueMatch-style benchmark out of a pile of photos."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tellapart._version import __version__
from tellapart.commands.choices import runtime_options
from tellapart.commands.outputs import say
from tellapart.commands.progress import Progress
from tellapart.errors import UsageError
from tellapart.mining import MinedBags, combined_rows, mine_bags
from tellapart.photos import read_captions
from tellapart.retriever import Retriever
from tellapart.truematch import random_groups, write_benchmark
from tellapart.truematch_files import Benchmark, check_place
from tellapart.truematch_images import BenchmarkImages
from tellapart.types import FloatArray

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Embed, mine, write.

    Raises:
        TellapartError: usage, an image, the bundle, the runtime.
    """
    if args.split is not None and args.captions is None:
        raise UsageError("--split needs --captions, which says what split an image is in")
    if len(set(args.sizes)) < len(args.sizes) or min(args.sizes) < 2:
        raise UsageError(f"--sizes must be different numbers from 2, got {args.sizes}")
    check_place(args.out, overwrite=args.force)
    captions = read_captions(args.captions, split=args.split) if args.captions is not None else None
    with (
        BenchmarkImages(args.images) as images,
        Retriever.open(args.model, runtime=runtime_options(args)) as retriever,
    ):
        names = list(images.photos.names) if captions is None else sorted(captions)
        images.require(names)
        image_rows = _embed_images(names, images, retriever)
        rows = image_rows
        if captions is not None:
            rows = combined_rows(image_rows, _caption_rows([captions[name] for name in names], retriever))
        embedding = {"name": retriever.bundle.manifest.name, "sha256": retriever.bundle.sha256}
    mined = {
        size: mine_bags(
            rows,
            size=size,
            band=args.band,
            seed=args.seed,
            near_duplicate=args.near_duplicate,
            image_rows=image_rows,
            max_bags=args.max_bags,
            rounds=args.rounds,
        )
        for size in sorted(args.sizes)
    }
    empty = [str(size) for size, found in mined.items() if not found.bags]
    if empty:
        raise UsageError(f"no bag of {', '.join(empty)} came about; bring more images or smaller --sizes")
    benchmark = write_benchmark(
        args.out,
        bags={size: [[names[row] for row in bag] for bag in found.bags] for size, found in mined.items()},
        rd100=random_groups(names, seed=args.seed),
        facts=_facts(args, embedding, mined),
        overwrite=args.force,
    )
    _report(args, benchmark, mined)
    return 0


def _embed_images(names: Sequence[str], images: BenchmarkImages, retriever: Retriever) -> FloatArray:
    rows = []
    with Progress(len(names)) as progress:
        for name in names:
            rows.append(retriever.embed_images([images.encoded(name)])[0])
            progress.advance()
    return np.stack(rows)


def _caption_rows(captions: Sequence[Sequence[str]], retriever: Retriever) -> FloatArray:
    """(n, d) float32, the mean of each image's captions; zero for an image without any."""
    say("reading the captions")
    rows = np.zeros((len(captions), retriever.width), np.float32)
    with Progress(len(captions)) as progress:
        for row, texts in enumerate(captions):
            if texts:
                rows[row] = retriever.embed_texts(texts).mean(axis=0)
            progress.advance()
    return rows


def _facts(
    args: argparse.Namespace, embedding: Mapping[str, str], mined: Mapping[int, MinedBags]
) -> dict[str, Any]:
    """What `benchmark.json` says; names of files only, as a path of this machine is of use to nobody."""
    with_captions = args.captions is not None
    return {
        "name": f"TrueMatch-style, {args.images.resolve().name}" + (f" {args.split}" if args.split else ""),
        "images": _relative(args.images, args.out),
        "source": {
            "images": args.images.resolve().name,
            "captions": args.captions.name if with_captions else None,
            "split": args.split,
        },
        "how": {
            "likeness": "unit sum of image embedding and mean caption embedding"
            if with_captions
            else "image embedding",
            "embedding": dict(embedding),
            "band": args.band,
            "near_duplicate": args.near_duplicate,
            "max_bags": args.max_bags,
            "rounds": args.rounds,
            "selection": "disjoint bags within a size; nobody looked at them",
            "tellapart": __version__,
        },
        "seed": args.seed,
        "counts": {str(size): found.to_record() for size, found in mined.items()},
    }


def _relative(images: Path, out: Path) -> str:
    """The photos as seen from the benchmark, so that both can move together."""
    try:
        return Path(os.path.relpath(images.resolve(), out.resolve())).as_posix()
    except ValueError:  # on another drive
        return images.resolve().as_posix()


def _report(args: argparse.Namespace, benchmark: Benchmark, mined: Mapping[int, MinedBags]) -> None:
    if args.json:
        record = {
            "benchmark": {"name": benchmark.name, "folder": str(args.out), "sha256": benchmark.sha256},
            "counts": {str(size): found.to_record() for size, found in mined.items()},
            "rd100_groups": len(benchmark.rd100),
        }
        print(json.dumps(record, ensure_ascii=False, allow_nan=False))
        return
    print(f"{args.out}  {benchmark.name}  {benchmark.sha256[:12]}")
    for size, found in mined.items():
        print(
            f"  bags of {size}: {len(found.bags)} of {found.images_used} among {found.images} images "
            f"({found.near_duplicates_removed} near-duplicates left out), "
            f"mean cosine within a bag {found.mean_similarity:.3f}"
        )
    print(f"  RD100: {len(benchmark.rd100)} groups of 100")
