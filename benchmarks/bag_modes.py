"""What the modes of a bag buy and cost: recall under a judge that had no part, faithfulness, time, in turns.

    python benchmarks/bag_modes.py --data ../shared/data --judge runs/study/judge/best \
        --language-model runs/study/language/best --mode plain rerank contrast

Every bag of `benchmarks/flickr8k-val` of one size is captioned in every mode, bag by bag in turns, so that the times
compare. `--contrast WEIGHT FLOOR` and `--fit X --listener X` try other settings of `contrast`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

from tellapart import Captioner, DecodeOptions, RuntimeOptions, bag, captioner
from tellapart.contrast import Contrast
from tellapart.truematch import image_name, read_benchmark
from tellapart_training.data import read_captions
from tellapart_training.images import ImageSource
from tellapart_training.judged import Judges

SHOWN = ("recall", "rd100", "cider_d", "chair_i", "fluency", "mean_words")


def main() -> int:
    """Print one row a mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--benchmark", type=Path, default=Path("benchmarks/flickr8k-val"))
    parser.add_argument("--size", type=int, default=5, help="of the bags")
    parser.add_argument("--limit", type=int, default=0, help="first bags alone; 0 takes all")
    parser.add_argument("--model", default=None, help="bundle (default: the embedded one)")
    parser.add_argument("--judge", type=Path, required=True, help="retriever checkpoint")
    parser.add_argument("--language-model", type=Path, required=True, help="checkpoint of `train warmup`")
    parser.add_argument("--mode", nargs="+", default=["plain", "rerank", "contrast"])
    parser.add_argument("--beams", type=int, default=0, help="0 leaves each mode its own")
    parser.add_argument("--contrast", nargs=2, type=float, metavar=("WEIGHT", "FLOOR"))
    parser.add_argument("--fit", type=float, default=bag.FIT_WEIGHT)
    parser.add_argument("--listener", type=float, default=bag.LISTENER_WEIGHT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("runs/study/cache"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    benchmark = read_benchmark(arguments.benchmark)
    bags = [[image_name(image) for image in each] for each in benchmark.bags[arguments.size]]
    bags = bags[: arguments.limit or len(bags)]
    source = ImageSource(arguments.data / "flickr8k/images.tar")
    records = {each.image: each for each in read_captions(arguments.data / "flickr8k/captions.jsonl")}
    names = [name for each in bags for name in each]
    judges = Judges.open(
        {"judge": arguments.judge}, images=source, names=names, cache=arguments.cache,
        benchmark=benchmark, language_model=arguments.language_model,
    )  # fmt: skip
    contrast = Contrast()
    if arguments.contrast:
        contrast = Contrast(weight=arguments.contrast[0], floor=arguments.contrast[1])
    options = DecodeOptions(beams=arguments.beams) if arguments.beams else None
    captions: dict[str, list[str]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    with (
        Captioner.open(arguments.model, runtime=RuntimeOptions(threads=arguments.threads)) as opened,
        patch.object(captioner, "Contrast", lambda: contrast),
        patch.object(bag, "FIT_WEIGHT", arguments.fit),
        patch.object(bag, "LISTENER_WEIGHT", arguments.listener),
    ):
        for done, each in enumerate(bags, start=1):
            photos = [source.read(name) for name in each]
            for mode in arguments.mode:
                started_s = time.perf_counter()
                result = opened.bag(photos, mode=mode, options=options)
                seconds[mode].append(time.perf_counter() - started_s)
                captions[mode].extend(caption.text for caption in result.captions)
            print(f"\r{done} of {len(bags)} bags", end="", file=sys.stderr)
    print(file=sys.stderr)
    references = [records[name].captions for name in names]
    rows = {}
    for mode in arguments.mode:
        figures = judges.figures(names, captions[mode], references)
        rows[mode] = {
            "recall": figures[f"judge.judge.bags_{arguments.size}"],
            "low": figures[f"judge.judge.bags_{arguments.size}_low"],
            "high": figures[f"judge.judge.bags_{arguments.size}_high"],
            **{name: figures[name] for name in SHOWN if name in figures},
            "seconds": statistics.median(seconds[mode]),
        }
    if arguments.json:
        print(json.dumps(rows))
        return 0
    print("| mode | R@1 (95 %) | CIDEr-D | CHAIR-i | fluency | words | s a bag, median |\n|---|---|---|---|---|---|---|")
    for mode, row in rows.items():
        print(
            f"| {mode} | {row['recall']:.1%} ({row['low']:.1%} to {row['high']:.1%}) | {row['cider_d']:.3f} | "
            f"{row['chair_i']:.3f} | {row['fluency']:.2f} | {row['mean_words']:.1f} | {row['seconds']:.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
