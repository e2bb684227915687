"""Train the two towers, from top to bottom: images and their captions together, others apart.

Symmetric InfoNCE with a learnt temperature over the batch of all processes. Two captions of one image are
never each other's negatives, nor are identical captions of different images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tellapart_model.compact import CompactPair
from tellapart_training.config import RetrieverConfig
from tellapart_training.features import Trunk
from tellapart_training.image_stage import ImageStage, batch_features, open_image_stage
from tellapart_training.loop import run_steps
from tellapart_training.losses import contrastive_loss, gather_rows, process_count
from tellapart_training.pair import TrainedPair, pair_of


def pair_contrast(
    network: CompactPair,
    features: Tensor,
    ids: Tensor,
    owners: Tensor,
    text_keys: Tensor,
) -> tuple[Tensor, Tensor]:
    """The contrastive loss of a batch over all processes.

    Args:
        network: both towers.
        features: (b, N, C) of this process's images.
        ids: (m, t) int64, this process's captions.
        owners: (m,) int64, row of each caption's image in this process's share.
        text_keys: (m,) int64.

    Returns:
        (loss, accuracy), see `losses.contrastive_loss`; the same on every process.
    """
    images = gather_rows(network.embed_features(features).float())
    texts = gather_rows(network.embed_text(ids).float())
    first = torch.arange(process_count(), device=owners.device).repeat_interleave(len(owners)) * len(features)
    all_owners = gather_rows(owners) + first
    scale = network.logit_scale.float()
    return contrastive_loss(images, texts, all_owners, gather_rows(text_keys), scale)


class RetrieverObjective(nn.Module):
    """The contrastive loss of a batch."""

    def __init__(self, pair: TrainedPair) -> None:
        super().__init__()
        self.network = pair.network

    def forward(
        self, pixels: Tensor | None, features: Tensor | None, ids: Tensor, owners: Tensor, text_keys: Tensor
    ) -> dict[str, Tensor]:
        """See `batches.ImageBatches.batch` for the shapes; returns scalars, "loss" among them."""
        features = batch_features(self.network, pixels, features)  # (b, N, C)
        loss, accuracy = pair_contrast(self.network, features, ids, owners, text_keys)
        return {"loss": loss, "accuracy": accuracy, "scale": self.network.logit_scale.detach()}


def train_retriever(
    config: RetrieverConfig, *, resume: bool = False, trunk: Trunk | None = None
) -> dict[str, Any]:
    """Train the retriever.

    Args:
        config: resolved.
        resume: go on from the newest state of the run folder.
        trunk: with `config.trunk == "frozen"`, computes the features instead of the pair's own trunk.

    Returns:
        The facts of run.json.

    Raises:
        TellapartError: config, data, checkpoint or state that cannot be used; see `loop.run_steps`.
    """
    accelerator, folder, captioner, data = open_image_stage(
        config, name="retriever", resume=resume, trunk=trunk
    )
    pair = pair_of(captioner, "train retriever")
    stage = ImageStage(
        name="retriever", config=config, captioner=pair, objective=RetrieverObjective(pair),
        data=data, accelerator=accelerator, selection="text_to_image_r10", captions=False,
    )  # fmt: skip
    return run_steps(config, stage, accelerator, folder=folder, resume=resume)
