"""How much sooner a folder is done with a worker for each core, and whether memory stays flat.

    python benchmarks/bulk.py PHOTOS [--images 200] [--beams 1] [--model BUNDLE]

One image at a time (`caption`, all threads on it) and in bulk (`caption_many` with workers, one thread each)
take turns in blocks, so that a machine that drifts drifts for both. Captions must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from tellapart import Captioner, DecodeOptions, RuntimeOptions
from tellapart.backends.threads import physical_cores
from tellapart.search import list_images


def rss_mib() -> float:
    """Memory that this process holds now."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> int:
    """Print images a second of both, their ratio by block, and memory before and after."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=int, default=200, help="of each, in all")
    parser.add_argument("--block", type=int, default=40)
    parser.add_argument("--beams", type=int)
    parser.add_argument("--rerank", type=float)
    parser.add_argument("--workers", type=int, default=physical_cores())
    args = parser.parse_args()
    options = DecodeOptions(beams=args.beams, rerank=args.rerank)
    names = list_images(args.photos)
    paths = [args.photos / names[place % len(names)] for place in range(args.images)]
    with (
        Captioner.open(args.model) as single,
        Captioner.open(args.model, runtime=RuntimeOptions(threads=1)) as bulk,
    ):
        for captioner in (single, bulk):
            captioner.caption(paths[0], options=options)
        before_mib = rss_mib()
        ratios, rates = [], []
        for first in range(0, len(paths), args.block):
            block = paths[first : first + args.block]
            started_s = time.perf_counter()
            one = [single.caption(path, options=options).text for path in block]
            middle_s = time.perf_counter()
            many = [found.text for found in bulk.caption_many(block, workers=args.workers, options=options)]
            ended_s = time.perf_counter()
            if one != many:
                print("captions differ", file=sys.stderr)
            ratios.append((middle_s - started_s) / (ended_s - middle_s))
            rates.append((len(block) / (middle_s - started_s), len(block) / (ended_s - middle_s)))
        print(f"one at a time {statistics.median(rate for rate, _ in rates):.1f} images a second")
        print(
            f"{args.workers} workers     {statistics.median(rate for _, rate in rates):.1f} images a second"
        )
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} blocks"
        print(f"ratio {statistics.median(ratios):.2f} ({spread})")
        print(f"memory {before_mib:.0f} MiB before, {rss_mib():.0f} MiB after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
