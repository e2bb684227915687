"""Captions from a network in training, as text."""

from __future__ import annotations

from torch import Tensor

from tellapart_model.generate import beam_search, greedy
from tellapart_training.pair import TrainedPair


def captions_of(
    pair: TrainedPair, cross_kv: Tensor, *, beams: int = 1, max_new_tokens: int = 24
) -> list[str]:
    """Captions of a batch of images.

    Args:
        pair: network in eval mode, tokenizer.
        cross_kv: (2L, b, H, N, D).
        beams: 1 is greedy.
        max_new_tokens: longest caption, end piece included.

    Returns:
        One lower-case text for each image.
    """
    max_new_tokens = min(max_new_tokens, pair.max_tokens - 1)
    if beams == 1:
        # Rows are padded behind the end piece; the tokenizer drops special pieces.
        rows = greedy(pair.network, cross_kv, max_new_tokens=max_new_tokens).tolist()
    else:
        rows = beam_search(pair.network, cross_kv, beams=beams, max_new_tokens=max_new_tokens)
    return [pair.tokenizer.decode(row) for row in rows]
