"""Where the time of a caption goes: its stages, and inside the decoder the runtime, numpy and the rest.

    python benchmarks/profile_caption.py
    python benchmarks/profile_caption.py --model BUNDLE --rounds 60 --threads 1

Settings take turns, image by image, so that a machine that drifts drifts for all. The last table asks
onnxruntime itself what its operators cost in one step; its clock makes small operators look dearer than they
are, so read it as shares.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tellapart import Captioner, DecodeOptions, RuntimeOptions
from tellapart.backends.ort import session_options
from tellapart.bench import drawn_photos
from tellapart.bundle import Bundle

SETTINGS = {
    "greedy": DecodeOptions(beams=1, rerank=0.0, confidence=False),
    "greedy, one run a token": DecodeOptions(beams=1, rerank=0.0, confidence=False, deadline_ms=1e6),
    "5 beams": DecodeOptions(beams=5, rerank=0.0, confidence=False),
    "10 beams": DecodeOptions(beams=10, rerank=0.0, confidence=False),
    "10 beams, rerank, confidence": DecodeOptions(beams=10, rerank=1.5),
}
PHOTOS = Path(__file__).parents[1] / "samples" / "photos"


def main() -> int:
    """Print three tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--spin", action="store_true")
    args = parser.parse_args()
    runtime = RuntimeOptions(threads=args.threads or "auto", spin=args.spin)
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))] or drawn_photos()
    with Captioner.open(args.model, runtime=runtime) as captioner:
        stages(captioner, photos, args.rounds)
        decoding(captioner, photos, args.rounds)
        for rows in (1, 5, 10):
            operators(captioner.bundle, rows=rows)
    return 0


def stages(captioner: Captioner, photos: list[bytes], rounds: int) -> None:
    """Milliseconds per stage and setting."""
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in SETTINGS}
    for turn in range(rounds + len(photos)):
        for name, options in SETTINGS.items():
            started_s = time.perf_counter()
            caption = captioner.caption(photos[turn % len(photos)], options=options)
            total_ms = (time.perf_counter() - started_s) * 1e3
            if turn >= len(photos):
                for stage, spent in {**caption.elapsed_ms, "total": total_ms}.items():
                    found[name][stage].append(spent)
    names = ["preprocess", "vision", "decode", "rerank", "confidence", "total"]
    print(f"{'ms, median':<30}" + "".join(f"{name:>12}" for name in names))
    for name, times in found.items():
        cells = (f"{statistics.median(times[stage]):>12.2f}" if times[stage] else " " * 12 for stage in names)
        print(f"{name:<30}" + "".join(cells))


def decoding(captioner: Captioner, photos: list[bytes], rounds: int) -> None:
    """Microseconds of one step: inside the runtime, and in numpy around it."""
    session = captioner._engine.decoder().session
    run = session.run
    spent: list[float] = []

    def timed(feeds: Mapping[str, Any]) -> dict[str, Any]:
        started_s = time.perf_counter()
        answer = run(feeds)
        spent.append((time.perf_counter() - started_s) * 1e6)
        return answer

    session.run = timed  # type: ignore[method-assign]
    views = [captioner.look(photo) for photo in photos]
    print(f"\n{'one step, us, median':<30}{'runtime':>12}{'numpy, rest':>12}{'steps':>12}")
    for name, options in SETTINGS.items():
        if name == "greedy":  # all of its steps are one run
            continue
        inside, outside, steps = [], [], []
        for turn in range(rounds):
            spent.clear()
            caption = captioner.caption(views[turn % len(views)], options=options)
            count = len(spent)
            inside.append(sum(spent) / count)
            outside.append((caption.elapsed_ms["decode"] * 1e3 - sum(spent)) / count)
            steps.append(count)
        cells = (statistics.median(values) for values in (inside, outside, steps))
        print(f"{name:<30}" + "".join(f"{cell:>12.0f}" for cell in cells))
    session.run = run  # type: ignore[method-assign]


def operators(bundle: Bundle, *, rows: int) -> None:
    """Share of the operators in one decoder step after ten tokens, as onnxruntime's profiler says."""
    import onnxruntime

    graph = bundle.graph("decoder", "onnx")
    draw = np.random.default_rng(0)
    feeds: dict[str, Any] = {"ids": np.full((rows, 1), 5)}
    for tensor in graph.inputs[1:]:
        free = {"past": 10, "batch": 1 if tensor.name == "cross_kv" else rows}
        shape = [size if isinstance(size, int) else free[size] for size in tensor.shape]
        feeds[tensor.name] = draw.standard_normal(shape).astype(np.float32)
    options = session_options("decoder", 1, RuntimeOptions())
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "step")
        session = onnxruntime.InferenceSession(bundle.read_bytes(graph.file), options)
        for _ in range(200):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
            count[event["args"]["op_name"]] += 1
    total = sum(spent.values())
    top = (f"{name} x{count[name] // 200} {us / total:.0%}" for name, us in spent.most_common(7))
    print(f"\n{rows} rows, {sum(count.values()) // 200} operators a step: {', '.join(top)}")


if __name__ == "__main__":
    sys.exit(main())
