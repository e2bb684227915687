"""Is the graph the network? Largest gaps per graph, and the same greedy tokens photo for photo.

The graphs run as on a device: opened from the bundle by `tellapart.backends`, decoded by `tellapart.decode`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.backends import Session
from tellapart.decode import Rules, greedy, log_softmax
from tellapart.errors import ParityError
from tellapart.kv_cache import KVCache
from tellapart.types import FloatArray, IntArray, PixelArray
from tellapart_export.graphs import SourceGraph
from tellapart_model import generate
from tellapart_model.compact import CompactPair
from tellapart_model.config import END_ID, PAD_ID, START_ID, UNKNOWN_ID

RELATIVE_GAP = 1e-3
"""Largest gap allowed, as a share of the largest value (or of 1): float32 in another order of sums."""

LEAST_COSINE = 0.99999


@dataclasses.dataclass(frozen=True)
class GraphParity:
    """How far one output of one graph is from the network's."""

    output: str
    max_abs: float
    mean_abs: float
    cosine: float


def check_graph(
    source: SourceGraph, session: Session, feeds: Iterable[Mapping[str, Any]]
) -> list[GraphParity]:
    """Compare one graph with the network on some inputs.

    Args:
        source: the network's side.
        session: the graph's side.
        feeds: numpy inputs by name; each is run on both sides.

    Returns:
        One entry per output: the worst over all feeds, the mean gap averaged.

    Raises:
        ParityError: a gap too large, or a shape or dtype that differs.
    """
    worst: dict[str, list[GraphParity]] = {}
    module = source.module.eval()
    for feed in feeds:
        with torch.no_grad():
            wanted = module(*(torch.from_numpy(feed[tensor.name]) for tensor in source.spec.inputs))
        rows = wanted if isinstance(wanted, tuple) else (wanted,)
        given = session.run(feed)
        for tensor, row in zip(source.spec.outputs, rows, strict=False):
            worst.setdefault(tensor.name, []).append(
                _gap(f"{source.spec.role}.{tensor.name}", row.numpy(), given[tensor.name])
            )
    return [
        GraphParity(
            entries[0].output,
            max(entry.max_abs for entry in entries),
            float(np.mean([entry.mean_abs for entry in entries])),
            min(entry.cosine for entry in entries),
        )
        for entries in worst.values()
    ]


def _gap(output: str, wanted: npt.NDArray[Any], given: npt.NDArray[Any]) -> GraphParity:
    if wanted.shape != given.shape or wanted.dtype != given.dtype:
        raise ParityError(
            f"{output}: the network gives {wanted.shape} {wanted.dtype}, the graph {given.shape} "
            f"{given.dtype}"
        )
    a, b = wanted.astype(np.float64).ravel(), given.astype(np.float64).ravel()
    gap = np.abs(a - b)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(a.any() == b.any())
    found = GraphParity(output, float(gap.max()), float(gap.mean()), min(cosine, 1.0))
    allowed = RELATIVE_GAP * max(1.0, float(np.abs(a).max()))
    # Written so that a NaN fails.
    if not (found.max_abs <= allowed and found.cosine >= LEAST_COSINE):
        raise ParityError(
            f"{output}: differs from the network by up to {found.max_abs:.2e} (at most {allowed:.2e} "
            f"allowed), cosine {found.cosine:.6f}"
        )
    return found


def random_feeds(pair: CompactPair, role: str, pixels: PixelArray) -> list[dict[str, npt.NDArray[Any]]]:
    """Inputs that reach the corners of a graph: batches of 1 and 3, no past and the longest, padded texts.

    Args:
        pair: the network.
        role: which graph.
        pixels: (n, s, s, 3) uint8, n at least 3, for the vision graph.
    """
    c, draw = pair.config, np.random.default_rng(0)
    if role == "vision":
        return [{"pixels": pixels[:1]}, {"pixels": pixels[:3]}]
    if role == "text":
        feeds = []
        for lengths in ((2,), (c.max_length, 2, 5)):
            ids = np.zeros((len(lengths), max(lengths)), np.int64)
            for row, length in enumerate(lengths):
                ids[row, :length] = draw.integers(END_ID + 1, c.vocabulary_size, length)
                ids[row, 0], ids[row, length - 1] = START_ID, END_ID
            feeds.append({"ids": ids})
        return feeds
    kv, heads, width = 2 * c.layers, c.heads, c.head_width
    return [
        {
            "ids": draw.integers(0, c.vocabulary_size, (batch, 1)),
            "past_kv": draw.standard_normal((kv, batch, heads, past, width)).astype(np.float32),
            "cross_kv": draw.standard_normal((kv, batch, heads, c.image_tokens, width)).astype(np.float32),
        }
        for batch, past in ((1, 0), (3, 0), (1, 1), (2, c.max_length - 1))
    ]


def check_tokens(
    pair: CompactPair, vision: Session, decoder: Session, pixels: Iterable[PixelArray], *, max_new_tokens: int
) -> int:
    """Greedy captions of network and graphs, token for token.

    Args:
        pair: the network.
        vision: session of the vision graph.
        decoder: session of the decoder graph.
        pixels: batches (b, s, s, 3) uint8.
        max_new_tokens: longest caption, end mark not counted.

    Returns:
        How many photos were compared.

    Raises:
        ParityError: a caption differs.
    """

    def step(ids: IntArray, cache: KVCache) -> FloatArray:
        given = decoder.run({"ids": ids[:, None], "past_kv": cache.past, "cross_kv": cache.cross})
        cache.append(given["present_kv"])
        return log_softmax(given["logits"])

    rules = Rules(
        start_id=START_ID,
        end_id=END_ID,
        banned_ids=(PAD_ID, UNKNOWN_ID, START_ID),
        max_new_tokens=max_new_tokens,
    )
    count = 0
    for batch in pixels:
        with torch.no_grad():
            cross_kv = pair.cross_kv(pair.features(torch.from_numpy(batch)))
            wanted = generate.greedy(pair, cross_kv, max_new_tokens=max_new_tokens + 1).tolist()
        found = greedy(step, KVCache.empty(vision.run({"pixels": batch})["cross_kv"]), rules=rules)
        for row, hypothesis in zip(wanted, found, strict=True):
            text = tuple(row[: row.index(END_ID)] if END_ID in row else row[:max_new_tokens])
            if text != hypothesis.ids or (END_ID in row) != hypothesis.finished:
                raise ParityError(
                    f"photo {count + 1}: the network says {text}, the graphs say {hypothesis.ids}; "
                    "greedy tokens have to be equal"
                )
            count += 1
    return count
