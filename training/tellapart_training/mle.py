"""Train the captioner on human captions, from top to bottom.

Each step encodes every image of the batch once and decodes several of its captions against the same keys and
values. The trunk either learns along (`trunk = "tuned"`, its batch norms keeping their statistics) or its
features are read from disk (`trunk = "frozen"`). With `contrastive_weight` the retriever's loss is added, so
that one trunk serves both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tellapart_training.captioner import TrainedCaptioner
from tellapart_training.config import MleConfig
from tellapart_training.features import Trunk
from tellapart_training.image_stage import ImageStage, NullPicture, batch_features, open_image_stage
from tellapart_training.loop import run_steps
from tellapart_training.losses import (
    IGNORED,
    caption_inputs_and_labels,
    mle_loss,
    process_count,
    sum_over_processes,
)
from tellapart_training.pair import pair_of
from tellapart_training.retriever import pair_contrast


class MleObjective(nn.Module):
    """Cross-entropy per token, and the contrastive term where asked."""

    def __init__(
        self, captioner: TrainedCaptioner, *, label_smoothing: float, contrastive_weight: float,
        null_probability: float = 0.0, null_features: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Put the objective together.

        Args:
            captioner: its network is trained.
            label_smoothing: of the cross-entropy.
            contrastive_weight: of the retriever's loss; 0 leaves it out.
            null_probability: see `image_stage.NullPicture`.
            null_features: likewise.

        Raises:
            CheckpointError: a contrastive weight for a captioner that is no retriever.
        """
        super().__init__()
        self.network = captioner.network
        self.pair = pair_of(captioner, "contrastive_weight") if contrastive_weight else None
        self.pad_id = captioner.marks.pad
        self.label_smoothing, self.contrastive_weight = label_smoothing, contrastive_weight
        self.null = NullPicture(captioner.preprocessing.image_px, null_probability, null_features)

    def forward(
        self, pixels: Tensor | None, features: Tensor | None, ids: Tensor, owners: Tensor, text_keys: Tensor
    ) -> dict[str, Tensor]:
        """See `batches.ImageBatches.batch` for the shapes; returns scalars, "loss" among them."""
        features = batch_features(self.network, pixels, features)  # (b, N, C)
        seen = self.null(self.network, features)
        condition = self.network.condition(seen).index_select(1, owners)  # (_, b * c, ...)
        inputs, labels = caption_inputs_and_labels(ids, self.pad_id)
        logits = self.network.logits(inputs, condition)  # (b * c, t, V)
        tokens = sum_over_processes((labels != IGNORED).sum())
        # Gradients are averaged over processes; the factor makes that the mean over all tokens of the batch.
        summed = mle_loss(logits, labels, label_smoothing=self.label_smoothing)
        caption_loss = summed * process_count() / tokens
        values = {"loss": caption_loss}
        if self.pair is not None:
            contrast, accuracy = pair_contrast(self.pair.network, features, ids, owners, text_keys)
            values = {
                "loss": caption_loss + self.contrastive_weight * contrast,
                "caption_loss": caption_loss, "contrastive_loss": contrast, "accuracy": accuracy,
            }  # fmt: skip
        return values


def train_mle(config: MleConfig, *, resume: bool = False, trunk: Trunk | None = None) -> dict[str, Any]:
    """Train the captioner.

    Args:
        config: resolved.
        resume: go on from the newest state of the run folder.
        trunk: with `config.trunk == "frozen"`, computes the features instead of the pair's own trunk.

    Returns:
        The facts of run.json.

    Raises:
        TellapartError: config, data, checkpoint or state that cannot be used; see `loop.run_steps`.
    """
    accelerator, folder, captioner, data = open_image_stage(config, name="mle", resume=resume, trunk=trunk)
    objective = MleObjective(
        captioner, label_smoothing=config.optimizer.label_smoothing,
        contrastive_weight=config.contrastive_weight, null_probability=config.null_probability,
        null_features=data.null_features,
    )  # fmt: skip
    stage = ImageStage(
        name="mle", config=config, captioner=captioner, objective=objective, data=data,
        accelerator=accelerator, selection="cider_d", captions=True,
    )  # fmt: skip
    return run_steps(config, stage, accelerator, folder=folder, resume=resume)
