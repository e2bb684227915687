"""Measure this device: milliseconds per stage, tokens per second, peak memory, and how many photos an hour.

    python examples/bench_device.py             on the sample photos
    python examples/bench_device.py 50          with more rounds

`tellapart bench` does the same with more to choose from, and compares two bundles in turns.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tellapart import DecodeOptions, RuntimeOptions
from tellapart.bench import bench

SAMPLES = Path(__file__).parents[1] / "samples" / "photos"


def main(argv: list[str] | None = None) -> int:
    """Print what was measured."""
    arguments = sys.argv[1:] if argv is None else argv
    [report] = bench(
        [None],  # the embedded bundle; name others beside it and they are timed in turns
        sorted(SAMPLES.glob("*.jpg")),
        runtime=RuntimeOptions(),
        options=DecodeOptions(),
        rounds=int(arguments[0]) if arguments else 10,
    )
    print(f"{report.bundle}, {report.size_mib:.1f} MiB, {report.rounds} captions")
    print(f"{'ms':>12}  {'first':>8}  {'median':>8}  {'95 %':>8}")
    for stage, times in report.stages.items():
        print(f"{stage:>12}  {times.first_ms:8.1f}  {times.p50_ms:8.1f}  {times.p95_ms:8.1f}")
    print(f"{report.tokens_per_s:.0f} tokens/s, peak memory {report.peak_rss_mib or float('nan'):.0f} MiB")
    print(f"about {3_600_000 / report.stages['total'].p50_ms:.0f} photos an hour")
    return 0


if __name__ == "__main__":
    sys.exit(main())
