"""How well the captioner's own plain beams bear out what a caption says.

A piece that most of what the captioner would say of an image contains is mostly there; one that a single beam
of ten has, or only a steered search, is mostly invented. The beams stand for all captions, each with its
chance, so the share of chance that contains a piece estimates how likely the piece is to be said at all. It
needs no word list and no language: pieces are those of the tokenizer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tellapart.similarity import RealArray
from tellapart.types import Caption

LEAST = 1e-3
"""Added to each share: what a piece costs that no beam has, 6.9 nats, is near what a rare one costs."""


def support(candidates: Sequence[Caption], spoken: Sequence[Caption]) -> RealArray:
    """Sum over each candidate's different pieces of the log of the share of beams that contain them.

    Args:
        candidates: of one image, n of them.
        spoken: the plain beams of the same image, at least one; weighted by their chance.

    Returns:
        (n,) float64, in nats: near 0 where all beams agree with all of a caption, lower with each piece that
        few of them have. A longer caption has more pieces to be borne out.
    """
    totals = np.array([log_chance(caption) for caption in spoken])
    chances = np.exp(totals - totals.max())
    share: defaultdict[int, float] = defaultdict(float)
    for caption, chance in zip(spoken, chances / chances.sum(), strict=True):
        for piece in set(caption.token_ids):
            share[piece] += float(chance)
    return np.array(
        [
            math.fsum(math.log(share.get(piece, 0.0) + LEAST) for piece in set(caption.token_ids))
            for caption in candidates
        ]
    )


def log_chance(caption: Caption) -> float:
    """Natural log of the chance of a whole caption, its end mark included where it came."""
    return caption.mean_logprob * (len(caption.token_ids) + (not caption.truncated))
