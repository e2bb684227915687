"""How long bundles take, in turns: one photo by each, then the next, so that a busy machine is so for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tellapart.bundle import Bundle
from tellapart.kv_cache import KVCache
from tellapart.photos import Photos
from tellapart_quantization.report import Runner

STEPS = 12
"""Steps of the decoder for each photo, about a caption; the same tokens for every bundle."""

ROUNDS = 15
WARM_UP = 2

_WORDS = 8  # of the text that a retriever alone reads


def time_in_turns(
    reference: Bundle,
    candidates: Sequence[Bundle],
    photos: Photos,
    names: Sequence[str],
    *,
    rounds: int = ROUNDS,
) -> list[dict[str, Any]]:
    """Time from pixels to `STEPS` tokens, or for a retriever alone to the rows of a photo and a text.

    Args:
        reference: the float bundle.
        candidates: bundles made of it.
        photos: where photos are.
        names: some of them.
        rounds: photos that each bundle gets.

    Returns:
        For each candidate {"rounds", "reference_ms", "int8_ms", "ratio"}: medians, one thread, and the
        median of the quotients of one round (below 1: quicker than float).
    """
    runners = [Runner(bundle) for bundle in (reference, *candidates)]
    try:
        page = reference.manifest.preprocessing
        chosen = [names[index % len(names)] for index in range(rounds + WARM_UP)]
        spent: list[list[float]] = [[] for _ in runners]
        for index, name in enumerate(chosen):
            [pixels] = photos.batches([name], page, batch_size=1)
            order = list(range(len(runners)))
            for place in order if index % 2 else order[::-1]:
                took = _once(runners[place], pixels)
                if index >= WARM_UP:
                    spent[place].append(took)
    finally:
        for runner in runners:
            runner.close()
    first = spent[0]
    return [
        {
            "rounds": rounds,
            "reference_ms": round(statistics.median(first), 2),
            "int8_ms": round(statistics.median(own), 2),
            "ratio": round(statistics.median(b / a for a, b in zip(first, own, strict=True)), 3),
        }
        for own in spent[1:]
    ]


def _once(runner: Runner, pixels: Any) -> float:
    ids = np.array([runner.tokenizer.start_id])
    started_s = time.perf_counter()
    seen = runner.sessions["vision"].run({"pixels": pixels})
    if "cross_kv" in seen:
        cache = KVCache.empty(seen["cross_kv"])
        for _ in range(min(STEPS, runner.bundle.manifest.decoding.max_new_tokens)):
            runner.step(ids, cache)
    elif "text" in runner.sessions:
        runner.sessions["text"].run({"ids": np.repeat(ids[None], _WORDS, axis=1)})
    return 1e3 * (time.perf_counter() - started_s)
