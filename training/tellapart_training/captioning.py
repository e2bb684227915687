"""Captions from a network in training, as text."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tellapart_model.generate import beam_search
from tellapart_training.captioner import TrainedCaptioner
from tellapart_training.pair import pair_of


class WrittenCaption(NamedTuple):
    """A caption, and whether it was cut at the longest length instead of coming to its end."""

    text: str
    cut: bool


def captions_of(
    captioner: TrainedCaptioner, condition: Tensor, *, beams: int = 1, max_new_tokens: int = 24
) -> list[str]:
    """The texts of `write_captions`."""
    written = write_captions(captioner, condition, beams=beams, max_new_tokens=max_new_tokens)
    return [caption.text for caption in written]


def write_captions(
    captioner: TrainedCaptioner, condition: Tensor, *, beams: int = 1, max_new_tokens: int = 24
) -> list[WrittenCaption]:
    """Captions of a batch of images.

    Args:
        captioner: network in eval mode, tokenizer.
        condition: (_, b, ...), see `CaptionNetwork`.
        beams: 1 is greedy; more only for the compact pair.
        max_new_tokens: longest caption, end piece included.

    Returns:
        One lower-case text for each image.

    Raises:
        CheckpointError: beams for another architecture.
    """
    max_new_tokens = min(max_new_tokens, captioner.max_tokens - 1)
    if beams == 1:
        # Rows are padded behind the end piece; the tokenizer drops special pieces.
        rows = captioner.greedy(condition, max_new_tokens).tolist()
        cut = [not captioner.has_end(row) for row in rows]
    else:
        network = pair_of(captioner, "beam search in training").network
        rows = beam_search(network, condition, beams=beams, max_new_tokens=max_new_tokens)
        # The end piece is left out and counts, so a caption that has one is shorter than the longest.
        cut = [len(row) >= max_new_tokens for row in rows]
    return [WrittenCaption(captioner.decode(row), was) for row, was in zip(rows, cut, strict=True)]
