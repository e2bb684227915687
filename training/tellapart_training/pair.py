"""The compact pair as a run trains it; only this file knows its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tellapart.errors import CheckpointError
from tellapart.manifest import Preprocessing, Vocabulary
from tellapart.tokenizer import Tokenizer
from tellapart_model.captioner import COMPACT_MARKS
from tellapart_model.checkpoint import load_checkpoint, save_checkpoint
from tellapart_model.compact import CompactPair
from tellapart_model.config import CompactConfig
from tellapart_training.captioner import TrainedCaptioner


@dataclass
class TrainedPair(TrainedCaptioner):
    """A compact pair and what is needed to feed it; its rows are `[CLS] ... [SEP]`.

    Attributes:
        network: captioner and retriever over one trunk.
        config: its architecture.
        vocabulary: lines of vocab.txt.
    """

    network: CompactPair
    config: CompactConfig
    vocabulary: Sequence[str]

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """See `TrainedCaptioner`."""
        save_checkpoint(
            folder, self.network, vocabulary=self.vocabulary, extra={**facts, "init_sha256": self.sha256}
        )

    def encode(self, caption: str) -> list[int]:
        """See `TrainedCaptioner`."""
        return list(self.tokenizer.encode(caption, self.max_tokens))

    def decode(self, ids: Iterable[int]) -> str:
        """See `TrainedCaptioner`."""
        return self.tokenizer.decode(ids)


def open_pair(checkpoint: Path) -> TrainedPair:
    """Load a checkpoint of the compact pair for training or evaluation.

    Raises:
        CheckpointError: absent, damaged, or of another architecture.
    """
    loaded = load_checkpoint(checkpoint)
    config = loaded.config
    tokenizer = Tokenizer.from_lines(loaded.vocabulary, Vocabulary(max_text_tokens=config.max_length))
    return TrainedPair(
        network=loaded.model, tokenizer=tokenizer, preprocessing=Preprocessing(image_px=config.image_px),
        marks=COMPACT_MARKS, max_tokens=config.max_length, sha256=loaded.sha256, config=config,
        vocabulary=loaded.vocabulary,
    )  # fmt: skip


def pair_of(captioner: TrainedCaptioner, wanted: str) -> TrainedPair:
    """The captioner as a pair, where a run needs its retriever.

    Args:
        captioner: as it was opened.
        wanted: what needs it, for the message.

    Raises:
        CheckpointError: it is no pair.
    """
    if isinstance(captioner, TrainedPair):
        return captioner
    raise CheckpointError(
        f"{wanted} needs a retriever, and the architecture {captioner.network.architecture!r} has none: "
        "start from a checkpoint of the compact pair"
    )


def no_image(pair: TrainedPair, batch: int, device: torch.device) -> Tensor:
    """Cross-attention input that says nothing: one token of zero keys and values, (2L, batch, H, 1, D)."""
    config = pair.config
    return torch.zeros(2 * config.layers, batch, config.heads, 1, config.head_width, device=device)
