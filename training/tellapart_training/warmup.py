"""Teach the decoder to write captions before it sees an image, from top to bottom.

Plain language modelling over caption texts. Cross-attention is given one image token of zero keys and
values, which adds nothing to the residual stream, so only self-attention, feed-forward layers and embeddings
learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tellapart_training.batches import Share, TextBatches, fitting_batch_size, pad_ids
from tellapart_training.config import WarmupConfig
from tellapart_training.images import say_on_stderr
from tellapart_training.loop import make_accelerator, run_steps
from tellapart_training.losses import (
    IGNORED,
    caption_inputs_and_labels,
    mle_loss,
    process_count,
    sum_over_processes,
)
from tellapart_training.optimisation import part_of
from tellapart_training.pair import TrainedPair, no_image, open_pair
from tellapart_training.run_folder import RunFolder
from tellapart_training.texts import load_texts


class LanguageObjective(nn.Module):
    """Cross-entropy per token of a text without an image."""

    def __init__(self, pair: TrainedPair, *, label_smoothing: float) -> None:
        super().__init__()
        self.network, self._pair = pair.network, pair
        self.label_smoothing = label_smoothing

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Ids (b, t + 1) int64 to scalars, "loss" among them."""
        inputs, labels = caption_inputs_and_labels(ids, self._pair.tokenizer.pad_id)
        logits = self.network.decoder(inputs, no_image(self._pair, len(ids), ids.device))
        tokens = sum_over_processes((labels != IGNORED).sum())
        summed = mle_loss(logits, labels, label_smoothing=self.label_smoothing)
        return {"loss": summed * process_count() / tokens}


class WarmupStage:
    """Batches of texts and the loss on held-back ones; see `loop.Stage`."""

    def __init__(
        self, config: WarmupConfig, pair: TrainedPair, batches: TextBatches, tuning: list[list[int]]
    ) -> None:
        self.name, self.selection, self.higher_is_better = "warmup", "tuning_loss", False
        self.network = pair.network
        self.objective = LanguageObjective(pair, label_smoothing=config.optimizer.label_smoothing)
        self.steps_per_epoch = batches.steps_per_epoch
        self._pair, self._batches, self._tuning = pair, batches, tuning

    def batch(self, epoch: int, step: int, part: int) -> Mapping[str, Any]:
        """See `loop.Stage`."""
        return self._batches.batch(epoch, step, part)

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """See `loop.Stage`."""
        self._pair.save(folder, facts)

    def evaluate(self, epoch: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Nats per token on the held-back texts, without smoothing."""
        del epoch
        if not self._tuning:
            return {}, []
        nats, tokens = 0.0, 0
        with torch.inference_mode():
            for start in range(0, len(self._tuning), 128):
                ids = pad_ids(self._tuning[start : start + 128], self._pair.tokenizer.pad_id).to(
                    self._batches.device
                )
                inputs, labels = caption_inputs_and_labels(ids, self._pair.tokenizer.pad_id)
                logits = self.network.decoder(inputs, no_image(self._pair, len(ids), ids.device))
                nats += float(mle_loss(logits, labels))
                tokens += int((labels != IGNORED).sum())
        return {"tuning_loss": nats / max(1, tokens)}, []


def train_warmup(config: WarmupConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train the decoder on text alone.

    Args:
        config: resolved; parts other than the decoder are left as they are.
        resume: go on from the newest state of the run folder.

    Returns:
        The facts of run.json.

    Raises:
        TellapartError: config, data, checkpoint or state that cannot be used; see `loop.run_steps`.
    """
    torch.manual_seed(config.seed)
    accelerator = make_accelerator(config)
    folder = RunFolder(config, stage="warmup", resume=resume)
    pair = open_pair(Path(config.init))
    for name, parameter in pair.network.named_parameters():
        parameter.requires_grad_(part_of(name) == "decoder")
    train, tuning = load_texts(config.data, seed=config.data.seed)
    say_on_stderr(f"{len(train)} texts to learn from, {len(tuning)} held back")
    share = Share(accelerator.process_index, accelerator.num_processes)
    accumulate = config.optimizer.accumulate
    batches = TextBatches(
        ids=[pair.encode(text) for text in train], seed=config.seed,
        batch_size=fitting_batch_size(
            config.optimizer.batch_size, len(train), accumulate=accumulate, processes=share.processes
        ),
        accumulate=accumulate, pad_id=pair.tokenizer.pad_id, share=share, device=accelerator.device,
    )  # fmt: skip
    stage = WarmupStage(config, pair, batches, [pair.encode(text) for text in tuning])
    return run_steps(config, stage, accelerator, folder=folder, resume=resume)
