"""Cold start and peak memory: fresh processes, from their start to the first caption on stdout.

    python benchmarks/cold_start.py samples/photos/astronaut.jpg [--model BUNDLE] [--runs 9]

Runs the command line as anybody would. "numpy" and "onnxruntime" are processes that import these and nothing
else: what of both figures is not ours. The first run reads from disk and is told apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of one Python process."""
    started_s = time.perf_counter()
    process = os.posix_spawn(
        sys.executable,
        [sys.executable, *arguments],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{arguments} ended with status {status}")
    # The peak of a process that was spawned, not forked, is its own.
    return time.perf_counter() - started_s, usage.ru_maxrss / 1024


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo")
    parser.add_argument("--model")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    caption = ["-m", "tellapart", "caption", args.photo, *(["--model", args.model] if args.model else [])]
    cases = {
        "caption": caption,
        "caption --beams 1 --rerank 0": [*caption, "--beams", "1", "--rerank", "0"],
        "numpy": ["-c", "import numpy"],
        "onnxruntime": ["-c", "import onnxruntime"],
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(args.runs + 1):
        for name, arguments in cases.items():
            found[name].append(run(arguments))
    print(f"{'':<30}{'first s':>9}{'median s':>10}{'worst s':>9}{'peak MiB':>10}")
    for name, ((first_s, _), *later) in found.items():
        seconds = [second for second, _ in later]
        peak = max(mib for _, mib in later)
        print(
            f"{name:<30}{first_s:>9.2f}{statistics.median(seconds):>10.2f}{max(seconds):>9.2f}{peak:>10.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
