"""Captions from a network in training, as text."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tellapart_model.config import END_ID
from tellapart_model.generate import beam_search, greedy
from tellapart_training.pair import TrainedPair


class WrittenCaption(NamedTuple):
    """A caption, and whether it was cut at the longest length instead of coming to its end."""

    text: str
    cut: bool


def captions_of(
    pair: TrainedPair, cross_kv: Tensor, *, beams: int = 1, max_new_tokens: int = 24
) -> list[str]:
    """The texts of `write_captions`."""
    written = write_captions(pair, cross_kv, beams=beams, max_new_tokens=max_new_tokens)
    return [caption.text for caption in written]


def write_captions(
    pair: TrainedPair, cross_kv: Tensor, *, beams: int = 1, max_new_tokens: int = 24
) -> list[WrittenCaption]:
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
        cut = [END_ID not in row for row in rows]
    else:
        rows = beam_search(pair.network, cross_kv, beams=beams, max_new_tokens=max_new_tokens)
        # The end piece is left out and counts, so a caption that has one is shorter than the longest.
        cut = [len(row) >= max_new_tokens for row in rows]
    return [WrittenCaption(pair.tokenizer.decode(row), was) for row, was in zip(rows, cut, strict=True)]
