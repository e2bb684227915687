"""Train the judge of sound text, from top to bottom: every caption beside a broken copy of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tellapart_training.augment import keyed_generator
from tellapart_training.batches import Share, epoch_order, fitting_batch_size, pad_ids, share_of_batch
from tellapart_training.config import GrammarConfig
from tellapart_training.corruption import corrupt
from tellapart_training.grammar import GrammarNetwork, grammar_of, save_grammar
from tellapart_training.images import say_on_stderr
from tellapart_training.loop import make_accelerator, run_steps
from tellapart_training.pair import TrainedPair, open_pair
from tellapart_training.run_folder import RunFolder
from tellapart_training.texts import load_texts


@dataclass(frozen=True)
class GrammarBatches:
    """Texts and broken copies, each copy a function of (seed, epoch, text) alone."""

    texts: Sequence[str]
    vocabulary: Sequence[str]
    pair: TrainedPair
    seed: int
    batch_size: int
    accumulate: int
    share: Share
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the rest of the order waits for another epoch."""
        return len(self.texts) // self.batch_size

    def batch(self, epoch: int, step: int, part: int) -> dict[str, Tensor]:
        """One share of a batch, see `pairs`."""
        rows = share_of_batch(
            epoch_order(len(self.texts), self.seed, epoch), step=step, part=part,
            batch_size=self.batch_size, accumulate=self.accumulate, share=self.share,
        )  # fmt: skip
        return self.pairs(rows, epoch)

    def pairs(self, rows: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """Ids (2b, t) int64, texts and then their broken copies, and labels (2b,) int64, 1 = sound."""
        texts = [self.texts[row] for row in rows]
        for row in rows:
            generator = keyed_generator(self.seed, "broken", epoch, row)
            texts.append(" ".join(corrupt(self.texts[row].split(), self.vocabulary, generator)))
        ids = pad_ids([self.pair.encode(text) for text in texts], self.pair.tokenizer.pad_id)
        labels = torch.tensor([1] * len(rows) + [0] * len(rows))
        return {"ids": ids.to(self.device), "labels": labels.to(self.device)}


class GrammarObjective(nn.Module):
    """Cross-entropy of sound against broken."""

    def __init__(self, network: GrammarNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `GrammarBatches.pairs`; returns scalars, "loss" among them."""
        logits = self.network(ids).float()
        right = (logits.argmax(-1) == labels).float().mean()
        return {"loss": functional.cross_entropy(logits, labels), "accuracy": right}


class GrammarStage:
    """Batches of sound and broken texts, and accuracy on held-back ones; see `loop.Stage`."""

    def __init__(
        self, pair: TrainedPair, network: GrammarNetwork, batches: GrammarBatches, tuning: GrammarBatches
    ) -> None:
        self.name, self.selection, self.higher_is_better = "grammar", "accuracy", True
        self.network, self.objective = network, GrammarObjective(network)
        self.steps_per_epoch = batches.steps_per_epoch
        self._pair, self._batches, self._tuning = pair, batches, tuning

    def batch(self, epoch: int, step: int, part: int) -> Mapping[str, Any]:
        """See `loop.Stage`."""
        return self._batches.batch(epoch, step, part)

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """See `loop.Stage`."""
        facts = {**facts, "init_sha256": self._pair.sha256}
        save_grammar(folder, self.network, vocabulary=self._pair.vocabulary, facts=facts)

    def evaluate(self, epoch: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Accuracy and loss on the held-back texts, broken the same way every time."""
        del epoch
        count = len(self._tuning.texts)
        if not count:
            return {}, []
        sums: dict[str, float] = {}
        with torch.inference_mode():
            for start in range(0, count, 128):
                rows = range(start, min(start + 128, count))
                for name, value in self.objective(**self._tuning.pairs(rows, 0)).items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(rows)
        return {"accuracy": sums["accuracy"] / count, "tuning_loss": sums["loss"] / count}, []


def train_grammar(config: GrammarConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train the judge from the text tower of `config.init`.

    Args:
        config: resolved.
        resume: go on from the newest state of the run folder.

    Returns:
        The facts of run.json.

    Raises:
        TellapartError: config, data, checkpoint or state that cannot be used; see `loop.run_steps`.
    """
    torch.manual_seed(config.seed)
    accelerator = make_accelerator(config)
    folder = RunFolder(config, stage="grammar", resume=resume)
    pair = open_pair(Path(config.init))
    network = grammar_of(pair.network)
    train, tuning = load_texts(config.data, seed=config.seed)
    say_on_stderr(f"{len(train)} texts to learn from, {len(tuning)} held back")
    share = Share(accelerator.process_index, accelerator.num_processes)
    accumulate = config.optimizer.accumulate
    batch_size = fitting_batch_size(
        config.optimizer.batch_size, len(train), accumulate=accumulate, processes=share.processes
    )
    words = sorted({word for text in train for word in text.split()})

    def batches(texts: Sequence[str]) -> GrammarBatches:
        return GrammarBatches(
            texts=texts, vocabulary=words, pair=pair, seed=config.seed, batch_size=batch_size,
            accumulate=accumulate, share=share, device=accelerator.device,
        )  # fmt: skip

    stage = GrammarStage(pair, network, batches(train), batches(tuning))
    return run_steps(config, stage, accelerator, folder=folder, resume=resume)
