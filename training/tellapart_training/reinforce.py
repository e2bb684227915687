"""Train the captioner on a reward of its own captions, from top to bottom.

Captions are drawn of each image; each earns a weighted sum of terms (`rewards`); what exceeds a baseline is
made likelier, what falls short less likely (`estimator`). A frozen scorer that knows the training images in
advance makes self-retrieval cost no more than the text. Dropout is off: drawn and trained distribution agree.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tellapart_model.captioner import CaptionNetwork
from tellapart_training.adapters import lora_of_run, merged
from tellapart_training.bag_order import BagOrder
from tellapart_training.captioner import TrainedCaptioner
from tellapart_training.config import ReinforceConfig
from tellapart_training.estimator import (
    RunningMean,
    advantages_of,
    batch_average,
    kl_divergence,
    policy_logprobs,
    reinforce_loss,
    token_logprobs,
)
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
from tellapart_training.reward_parts import RewardParts, bag_order, open_reward
from tellapart_training.rewards import DrawnCaptions, RewardTerm, weighted_sum
from tellapart_training.stopwatch import Stopwatch


class ReinforceObjective(nn.Module):
    """Minus the expected reward; beside it divergence from the start and cross-entropy on human captions."""

    def __init__(
        self, captioner: TrainedCaptioner, config: ReinforceConfig, terms: Mapping[str, RewardTerm],
        *, reference: CaptionNetwork | None = None, null_features: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Put the objective together.

        Args:
            captioner: its network is trained.
            config: resolved.
            terms: of the reward, by their names in `config.reward`.
            reference: the network as it was, where `config.kl_weight` is above 0.
            null_features: see `image_stage.NullPicture`.
        """
        super().__init__()
        self.network, self.config, self.terms = captioner.network, config, terms
        self.reference, self.captioner = reference, captioner
        self.weights = {name: float(getattr(config.reward, name)) for name in terms}
        self.null = NullPicture(captioner.preprocessing.image_px, config.null_probability, null_features)
        self.running = RunningMean(reset_at_levels=config.baseline_reset)
        self.stopwatch = Stopwatch("sampling", "scoring", "backward")
        self.max_new_tokens = min(config.max_new_tokens, captioner.max_tokens - 1)

    def forward(
        self,
        pixels: Tensor | None,
        features: Tensor | None,
        ids: Tensor,
        owners: Tensor,
        text_keys: Tensor,
        rows: Sequence[int],
        bags: Sequence[int],
        pool: Sequence[int],
        pool_bags: Sequence[int],
        level: int,
    ) -> dict[str, Tensor]:
        """A step's scalars by name, "loss" among them.

        Args:
            pixels: see `batches.ImageBatches.batch`, as for the next four.
            features: likewise.
            ids: likewise; read where cross-entropy is asked for.
            owners: likewise.
            text_keys: likewise; not read.
            rows: the training image of each image of this process's share.
            bags: the bag of each.
            pool: the training images of the whole batch over all processes.
            pool_bags: the bag of each.
            level: row of the curriculum.
        """
        del text_keys
        config, samples, marks = self.config, self.config.samples_per_image, self.captioner.marks
        self.network.eval()
        features = batch_features(self.network, pixels, features)  # (b, N, C)
        condition = self.network.condition(features)  # (_, b, ...)
        with self.stopwatch.measure("sampling"):
            drawn = self._draw(condition.detach())  # (b * s, t)
            likeliest = self._greedy(condition.detach()) if config.baseline == "greedy" else drawn[:0]
        with self.stopwatch.measure("scoring"):
            scene = self._scene([drawn, likeliest], rows=rows, bags=bags, pool=pool, pool_bags=pool_bags)
            terms = {name: term(scene).to(drawn.device) for name, term in self.terms.items()}
            totals = weighted_sum(terms, self.weights)
        rewards, compared = totals[: len(drawn)], totals[len(drawn) :]
        self.running.enter(level)
        advantages = advantages_of(
            rewards, samples=samples, baseline=config.baseline, running=self.running, greedy=compared
        )
        start = torch.full_like(drawn[:, :1], marks.start)
        inputs, labels = caption_inputs_and_labels(torch.cat([start, drawn], 1), marks.pad)
        logits = self.network.logits(inputs, condition.repeat_interleave(samples, 1))
        policy = policy_logprobs(logits, config.temperature, marks)
        loss = reinforce_loss(token_logprobs(policy, labels), labels, advantages, config.normalise)
        values = {
            "loss": loss, "reward": rewards.mean(), "reward_std": rewards.std(correction=0),
            **{f"reward_{name}": each[: len(drawn)].mean() for name, each in terms.items()},
            "caption_words": _mean_words(scene.texts[: len(drawn)]),
            "cut_captions": 1 - torch.tensor(scene.ended[: len(drawn)]).float().mean(),
        }  # fmt: skip
        if config.baseline == "running_mean":
            values["baseline"] = (rewards - advantages).mean()
        if self.reference is not None:
            with torch.no_grad():
                seen = features if pixels is None else self.reference.features(pixels)
            divergence = self._divergence(self.reference, seen, inputs, labels, policy)
            total = values["loss"] + config.kl_weight * divergence
            values.update(loss=total, reinforce_loss=loss, kl=divergence)
        if config.mle_weight:
            seen = condition
            if self.null.probability:
                seen = self.network.condition(self.null(self.network, features))
            caption_loss = self._cross_entropy(ids, owners, seen)
            total = values["loss"] + config.mle_weight * caption_loss
            values.update(loss=total, reinforce_loss=loss, caption_loss=caption_loss)
        return values

    def _draw(self, condition: Tensor) -> Tensor:
        config = self.config
        if config.decode == "greedy":
            return self._greedy(condition)
        repeated = condition.repeat_interleave(config.samples_per_image, 1)
        return self.captioner.sample(repeated, self.max_new_tokens, config.temperature)

    def _greedy(self, condition: Tensor) -> Tensor:
        return self.captioner.greedy(condition, self.max_new_tokens)

    def _scene(
        self, blocks: Sequence[Tensor], *, rows: Sequence[int], bags: Sequence[int], pool: Sequence[int],
        pool_bags: Sequence[int],
    ) -> DrawnCaptions:  # fmt: skip
        """Blocks of captions, each with equally many of every image, as texts with their images."""
        ids = [row for block in blocks for row in block.tolist()]
        each = [len(block) // len(rows) for block in blocks]
        return DrawnCaptions(
            texts=[self.captioner.decode(row) for row in ids],
            ended=[self.captioner.has_end(row) for row in ids],
            rows=[row for count in each for row in rows for _ in range(count)],
            bags=[bag for count in each for bag in bags for _ in range(count)],
            pool=pool, pool_bags=pool_bags,
        )  # fmt: skip

    def _divergence(
        self, reference: CaptionNetwork, features: Tensor, inputs: Tensor, labels: Tensor, policy: Tensor
    ) -> Tensor:
        """Mean divergence from the network as it was."""
        config = self.config
        with torch.no_grad():
            condition = reference.condition(features.detach())
            logits = reference.logits(inputs, condition.repeat_interleave(config.samples_per_image, 1))
            before = policy_logprobs(logits, config.temperature, self.captioner.marks)
        return batch_average(kl_divergence(policy, before, labels), labels, config.normalise)

    def _cross_entropy(self, ids: Tensor, owners: Tensor, condition: Tensor) -> Tensor:
        inputs, labels = caption_inputs_and_labels(ids, self.captioner.marks.pad)
        logits = self.network.logits(inputs, condition.index_select(1, owners))
        tokens = sum_over_processes((labels != IGNORED).sum())
        return mle_loss(logits, labels) * process_count() / tokens


def _mean_words(texts: Sequence[str]) -> Tensor:
    return torch.tensor(sum(len(text.split()) for text in texts) / max(1, len(texts)))


class ReinforceStage(ImageStage):
    """An image stage whose batches also say which images they hold and what they are told apart from."""

    def __init__(self, *, parts: RewardParts, order: BagOrder | None, **stage: Any) -> None:
        super().__init__(order=order, **stage)
        self._parts, self._bag_order = parts, order

    def batch(self, epoch: int, step: int, part: int) -> Mapping[str, Any]:
        """See `loop.Stage`."""
        rows, pool = self.batches.rows(epoch, step, part), self.batches.rows_of_all(epoch, step, part)
        first = self.batches.share.rank * len(rows)
        size = self._bag_order.bag_size(epoch) if self._bag_order else len(pool)
        pool_bags = [place // size for place in range(len(pool))]
        return {
            **super().batch(epoch, step, part), "rows": rows, "bags": pool_bags[first : first + len(rows)],
            "pool": pool, "pool_bags": pool_bags,
            "level": self._bag_order.level(epoch) if self._bag_order else 0,
        }  # fmt: skip

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """See `loop.Stage`; adapters are merged into plain weights."""
        dataclasses.replace(self.captioner, network=merged(self.network)).save(folder, facts)

    def caption_figures(self, lines: Sequence[str]) -> dict[str, float]:
        """Self-retrieval of the greedy captions by the reward's scorer."""
        return self._parts.tuning_figures(lines)


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
    accelerator, folder, captioner, data = open_image_stage(
        config, name="reinforce", resume=resume, trunk=trunk
    )
    captioner.network.freeze_retriever()
    parts = open_reward(config, data, accelerator)
    reference = None
    if config.kl_weight:
        # Copied before any state is taken up, so that a resumed run diverges from the same network.
        reference = copy.deepcopy(captioner.network).requires_grad_(False).eval()
    lora_of_run(captioner.network, config.lora)
    objective = ReinforceObjective(
        captioner, config, parts.terms, reference=reference, null_features=data.null_features
    )
    stage = ReinforceStage(
        name="reinforce", config=config, captioner=captioner, objective=objective, data=data,
        accelerator=accelerator, selection=config.selection, captions=True, parts=parts,
        order=bag_order(config, data, accelerator), captions_per_image=None if config.mle_weight else 0,
        max_steps=config.max_steps_per_epoch,
    )  # fmt: skip
    return run_steps(
        config, stage, accelerator, folder=folder, resume=resume, memory=objective.running,
        stopwatch=objective.stopwatch,
    )  # fmt: skip
