"""What drawing captions and training on them ask of a captioning network, whatever is inside it.

Axis letters: b images, N image tokens, C channels of a feature, r rows (captions), t tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from tellapart_model.config import END_ID, PAD_ID, START_ID, UNKNOWN_ID


@dataclass(frozen=True)
class Marks:
    """Ids with a meaning of their own in rows of a caption.

    Attributes:
        start: stands in front of every caption; a network without a start mark does not read it.
        pad: fills rows behind the end.
        ends: after one of these a caption is over.
        barred: never part of a caption, however likely.
    """

    start: int
    pad: int
    ends: frozenset[int]
    barred: tuple[int, ...] = ()


COMPACT_MARKS = Marks(START_ID, PAD_ID, frozenset({END_ID}), (PAD_ID, UNKNOWN_ID, START_ID))
"""Those of the compact pair."""


class Walk(Protocol):
    """Captions under way: next-token logits from a cache of keys and values."""

    def step(self, ids: Tensor) -> Tensor:
        """Ids (r, 1) of the tokens after those seen so far, first the start mark -> logits (r, V)."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, (k,) int64."""


class CaptionNetwork(nn.Module):
    """A captioner: pixels -> features -> a condition -> logits. What the trainer knows of a network.

    A condition is what the decoder reads of the images, computed once for each; its axis 1 holds the images,
    so that a captioner's layout on the other axes is its own affair.
    """

    architecture: ClassVar[str]

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> features (b, N, C) float32 of the vision tower."""
        raise NotImplementedError

    def condition(self, features: Tensor) -> Tensor:
        """Features (b, N, C) -> (_, b, ...)."""
        raise NotImplementedError

    def logits(self, ids: Tensor, condition: Tensor) -> Tensor:
        """Teacher forcing: ids (r, t) from the start mark on, condition (_, r, ...) -> (r, t, V)."""
        raise NotImplementedError

    def walk(self, condition: Tensor, longest: int) -> Walk:
        """Begin captions of at most `longest` tokens, one for each row of the condition."""
        raise NotImplementedError

    def freeze_before(self, block: int, *, depthwise: bool) -> None:
        """Keep what lies before a block of the vision tower, and on demand depthwise filters, as it is."""
        raise NotImplementedError

    def freeze_retriever(self) -> None:
        """Keep what is no part of the captioner as it is; nothing here."""
