"""The network a run trains, with vocabulary and preprocessing; only this file knows checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tellapart.manifest import Preprocessing, Vocabulary
from tellapart.tokenizer import Tokenizer
from tellapart_model.checkpoint import load_checkpoint, save_checkpoint
from tellapart_model.compact import CompactPair
from tellapart_model.config import CompactConfig
from tellapart_training.state import named_tensors


@dataclass
class TrainedPair:
    """A compact pair and what is needed to feed it.

    Attributes:
        network: captioner and retriever over one trunk.
        config: its architecture.
        vocabulary: lines of vocab.txt.
        tokenizer: the device's own, over those lines.
        preprocessing: the device's own rule for pixels.
        max_tokens: longest row of ids, `[CLS]` and `[SEP]` included.
        sha256: of the checkpoint's manifest, its name in reports.
    """

    network: CompactPair
    config: CompactConfig
    vocabulary: Sequence[str]
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    max_tokens: int
    sha256: str

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write a checkpoint folder that names, besides `facts`, the one training started from."""
        save_checkpoint(
            folder, self.network, vocabulary=self.vocabulary, extra={**facts, "init_sha256": self.sha256}
        )

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption, `[CLS] ... [SEP]`, cut to `max_tokens`."""
        return list(self.tokenizer.encode(caption, self.max_tokens))


def open_pair(checkpoint: Path) -> TrainedPair:
    """Load a checkpoint of the compact pair for training or evaluation.

    Raises:
        CheckpointError: absent, damaged, or of another architecture.
    """
    loaded = load_checkpoint(checkpoint)
    config = loaded.config
    tokenizer = Tokenizer.from_lines(loaded.vocabulary, Vocabulary(max_text_tokens=config.max_length))
    preprocessing = Preprocessing(image_px=config.image_px)
    return TrainedPair(
        loaded.model, config, loaded.vocabulary, tokenizer, preprocessing, config.max_length, loaded.sha256
    )


def no_image(pair: TrainedPair, batch: int, device: torch.device) -> Tensor:
    """Cross-attention input that says nothing: one token of zero keys and values, (2L, batch, H, 1, D)."""
    config = pair.config
    return torch.zeros(2 * config.layers, batch, config.heads, 1, config.head_width, device=device)


def trunk_identity(pair: TrainedPair) -> str:
    """Hash of the trunk's weights and statistics: names the features it computes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(pair.network).items()):
        if name.startswith("trunk"):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
