"""Train the captioner on a reward of its own captions: self-critical training on CIDEr-D, from top to bottom.

Several captions are drawn of each image; each is scored against the human ones, and what exceeds the mean of
its siblings is made likelier, what falls short less likely (Rennie et al. 2017, with a leave-one-out
baseline). Document frequencies are those of the training references. The end of a caption counts as a word on
both sides, so that captions which stop in mid-sentence lose. Dropout is off: drawn and trained distribution
agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tellapart_model.config import END_ID, PAD_ID, START_ID
from tellapart_model.generate import sample
from tellapart_training.config import ReinforceConfig
from tellapart_training.features import Trunk
from tellapart_training.image_stage import ImageStage, batch_features, open_image_stage
from tellapart_training.loop import run_steps
from tellapart_training.losses import (
    IGNORED,
    caption_inputs_and_labels,
    leave_one_out_advantage,
    mle_loss,
    process_count,
    reinforce_loss,
    sum_over_processes,
)
from tellapart_training.metrics import metric_words
from tellapart_training.metrics.cider import CiderD, DocumentFrequencies
from tellapart_training.pair import TrainedPair

END_WORD = "</s>"


class CiderReward:
    """CIDEr-D of drawn captions; the end piece is a word."""

    def __init__(self, pair: TrainedPair, references: Sequence[Sequence[str]]) -> None:
        """Weigh the references.

        Args:
            pair: whose tokenizer reads the captions.
            references: the human captions of each training image.
        """
        self._decode = pair.tokenizer.decode
        words = [[[*metric_words(text), END_WORD] for text in texts] for texts in references]
        self._scorer = CiderD(words, DocumentFrequencies.of_references(words))

    def __call__(self, drawn: Tensor, rows: Sequence[int]) -> Tensor:
        """Rewards, (b,) float32 from 0 to 10.

        Args:
            drawn: (b, t) int64 as `generate.sample` gives them.
            rows: the training image of each caption.
        """
        scores = []
        for ids, row in zip(drawn.tolist(), rows, strict=True):
            ended = [END_WORD] if END_ID in ids else []
            scores.append(self._scorer.score([*metric_words(self._decode(ids)), *ended], row))
        return torch.tensor(scores)


class ReinforceObjective(nn.Module):
    """Minus the expected reward, and cross-entropy on human captions beside it."""

    def __init__(self, pair: TrainedPair, config: ReinforceConfig, reward: CiderReward) -> None:
        super().__init__()
        self.network, self.reward = pair.network, reward
        self.samples, self.mle_weight = config.samples_per_image, config.mle_weight
        self.max_new_tokens = min(config.max_new_tokens, pair.max_tokens - 1)

    def forward(
        self,
        pixels: Tensor | None,
        features: Tensor | None,
        ids: Tensor,
        owners: Tensor,
        text_keys: Tensor,
        rows: Sequence[int],
    ) -> dict[str, Tensor]:
        """See `batches.ImageBatches.batch` for the shapes; `rows` are the training images of the batch."""
        del text_keys
        self.network.eval()
        features = batch_features(self.network, pixels, features)  # (b, N, C)
        cross_kv = self.network.cross_kv(features)  # (2L, b, H, N, D)
        repeated = cross_kv.repeat_interleave(self.samples, 1)
        drawn = sample(self.network, repeated.detach(), max_new_tokens=self.max_new_tokens)  # (b * s, t)
        rewards = self.reward(drawn, [row for row in rows for _ in range(self.samples)]).to(drawn.device)
        advantages = leave_one_out_advantage(rewards.view(-1, self.samples)).flatten()
        start = torch.full_like(drawn[:, :1], START_ID)
        inputs, labels = caption_inputs_and_labels(torch.cat([start, drawn], 1), PAD_ID)
        tokens = sum_over_processes((labels != IGNORED).sum())
        summed = reinforce_loss(self.network.decoder(inputs, repeated), labels, advantages)
        loss = summed * process_count() / tokens
        values = {"loss": loss, "reward": rewards.mean()}
        if self.mle_weight:
            inputs, labels = caption_inputs_and_labels(ids, PAD_ID)
            logits = self.network.decoder(inputs, cross_kv.index_select(1, owners))
            tokens = sum_over_processes((labels != IGNORED).sum())
            caption_loss = mle_loss(logits, labels) * process_count() / tokens
            values.update(
                loss=loss + self.mle_weight * caption_loss, reinforce_loss=loss, caption_loss=caption_loss
            )
        return values


class ReinforceStage(ImageStage):
    """An image stage whose batches also say which images they hold."""

    def batch(self, epoch: int, step: int, part: int) -> Mapping[str, Any]:
        """See `loop.Stage`."""
        return {**super().batch(epoch, step, part), "rows": self.batches.rows(epoch, step, part)}


def train_reinforce(
    config: ReinforceConfig, *, resume: bool = False, trunk: Trunk | None = None
) -> dict[str, Any]:
    """Train the captioner on its reward.

    Args:
        config: resolved.
        resume: go on from the newest state of the run folder.
        trunk: with `config.trunk == "frozen"`, computes the features instead of the pair's own trunk.

    Returns:
        The facts of run.json.

    Raises:
        TellapartError: config, data, checkpoint or state that cannot be used; see `loop.run_steps`.
    """
    accelerator, folder, pair, data = open_image_stage(config, name="reinforce", resume=resume, trunk=trunk)
    for part in (pair.network.pool, pair.network.text):
        part.requires_grad_(False)
    pair.network.log_scale.requires_grad_(False)
    reward = CiderReward(pair, [record.captions for record in data.train.records])
    stage = ReinforceStage(
        name="reinforce", config=config, pair=pair, objective=ReinforceObjective(pair, config, reward),
        data=data, accelerator=accelerator, selection="cider_d", captions=True,
    )  # fmt: skip
    return run_steps(config, stage, accelerator, folder=folder, resume=resume)
