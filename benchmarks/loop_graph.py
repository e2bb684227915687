"""A greedy caption in one run of the runtime, against one run a token: what does it save?

    python benchmarks/loop_graph.py --images ../shared/data/flickr8k/images.tar --photos 24

Both take turns, photo by photo, on one thread; times are of decoding alone, in processor time, which waiting
does not count in. Runs where the training package is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tellapart import Captioner, DecodeOptions, RuntimeOptions
from tellapart.decode import Hypothesis, greedy
from tellapart.kv_cache import KVCache
from tellapart.plan import make_plan
from tellapart.types import FloatArray
from tellapart_training.images import ImageSource


def measure(
    ways: dict[str, Callable[[FloatArray], Hypothesis]], photos: list[FloatArray], rounds: int
) -> dict[str, list[float]]:
    """Per way and photo the median milliseconds of processor time, the ways in turns."""
    spent: dict[str, list[list[float]]] = {name: [[] for _ in photos] for name in ways}
    for _ in range(rounds):
        for place, cross_kv in enumerate(photos):
            for name, decode in ways.items():
                started_s = time.process_time()
                decode(cross_kv)
                spent[name][place].append((time.process_time() - started_s) * 1e3)
    return {name: [statistics.median(each) for each in times] for name, times in spent.items()}


def main() -> int:
    """Compare captions, then times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    source = ImageSource(args.images)
    with Captioner.open(args.model, runtime=RuntimeOptions(threads=1)) as captioner:
        engine = captioner._engine
        rules = make_plan(DecodeOptions(beams=1), captioner.bundle.manifest.decoding, engine.tokenizer).rules
        step, whole = engine.decoder().step, engine.greedy(rules)
        if whole is None:
            print("this model has no graph of whole captions", file=sys.stderr)
            return 1

        def by_step(cross_kv: FloatArray) -> Hypothesis:
            [found] = greedy(step, KVCache.empty(cross_kv), rules=rules)
            return found

        def by_loop(cross_kv: FloatArray) -> Hypothesis:
            found = whole.write(cross_kv, rules)
            if found is None:
                raise SystemExit("the graph of whole captions was not believed")
            return found

        photos = [captioner.look(source.read(name)).cross_kv for name in source.names()[: args.photos]]
        same = sum(by_step(cross_kv) == by_loop(cross_kv) for cross_kv in photos)
        print(f"the same tokens and log-probabilities, bit for bit, for {same} of {len(photos)} photos")
        times = measure({"steps": by_step, "loop": by_loop}, photos, args.rounds)
    ratio = statistics.median(loop / steps for steps, loop in zip(times["steps"], times["loop"], strict=True))
    for name, each in times.items():
        print(f"{name:<6}{statistics.mean(each):>8.2f} ms of decoding a photo")
    print(f"loop / steps, median over photos: {ratio:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
