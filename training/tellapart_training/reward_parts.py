"""What a reward run opens besides the captioner: the terms of its reward, its scorer, its bags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from tellapart.similarity import hits_at_1
from tellapart_training.augment import keyed_generator
from tellapart_training.bag_order import BagOrder
from tellapart_training.batches import CaptionedImages
from tellapart_training.config import ReinforceConfig
from tellapart_training.curriculum import known_bags
from tellapart_training.grammar import load_grammar
from tellapart_training.image_stage import ImageData
from tellapart_training.images import ImageSource, say_on_stderr
from tellapart_training.metrics.fluency import open_language_model
from tellapart_training.pair import open_pair
from tellapart_training.rewards import (
    CiderReward,
    FaithfulnessReward,
    FluencyReward,
    GrammarReward,
    RewardTerm,
    SelfRetrievalReward,
    TextScorer,
    retrieval_logprobs,
)
from tellapart_training.scorer import Scorer

GROUP = 100
"""Images that a tuning caption's own is picked from: random groups of 100, as the paper selects."""


@dataclass(frozen=True)
class TuningRetrieval:
    """The scorer and the rows of the tuning images.

    Attributes:
        scorer: embeds captions.
        image_rows: (n, d) float32 unit rows, in the order of the tuning images.
        scale: inverse temperature of the log-probability.
        seed: of the groups.
    """

    scorer: TextScorer
    image_rows: Tensor
    scale: float
    seed: int

    def figures(self, lines: Sequence[str]) -> dict[str, float]:
        """Recall@1 (ties are misses) and mean log-probability in fixed random groups of `GROUP`.

        Args:
            lines: captions of the first images; with fewer than `GROUP` they are one group, otherwise those
                that fill no group are left out.
        """
        if len(lines) < 2:
            return {}
        texts = self.scorer.embed_texts(lines)
        order = torch.randperm(len(lines), generator=keyed_generator(self.seed, "groups", len(lines)))
        size = min(GROUP, len(lines))
        hits, logprobs = [], []
        for start in range(0, len(lines) - size + 1, size):
            group = order[start : start + size].to(texts.device)
            ours, images = texts[group], self.image_rows[group]
            hits.append(hits_at_1((ours.float() @ images.T).cpu().numpy()))
            everyone = torch.ones(size, size, dtype=torch.bool, device=texts.device)
            own = torch.arange(size, device=texts.device)
            logprobs.append(retrieval_logprobs(ours, images, own, everyone, self.scale).cpu())
        return {
            "self_retrieval_r1": float(np.concatenate(hits).mean()),
            "self_retrieval": float(torch.cat(logprobs).mean()),
        }


@dataclass(frozen=True)
class RewardParts:
    """The terms of a reward, and how captions of the tuning images are judged.

    Attributes:
        terms: by their names in the config.
        tuning: None without a scorer or tuning images.
    """

    terms: Mapping[str, RewardTerm]
    tuning: TuningRetrieval | None

    def tuning_figures(self, lines: Sequence[str]) -> dict[str, float]:
        """Figures of greedy captions of the first tuning images."""
        return self.tuning.figures(lines) if self.tuning else {}


def open_reward(config: ReinforceConfig, data: ImageData, accelerator: Accelerator) -> RewardParts:
    """Open every term that has a weight; image rows of the scorer are computed once and kept on disk.

    Raises:
        CheckpointError: a scorer or a judge that cannot be opened.
        DataError: images that it cannot read.
    """
    weights, device = config.reward, accelerator.device
    references = [record.captions for record in data.train.records]
    terms: dict[str, RewardTerm] = {}
    tuning = None
    if weights.scorer:
        folder = Path(weights.scorer)
        pair = open_pair(folder)
        scale = weights.scale or float(pair.network.logit_scale.detach())
        scorer = Scorer(pair, name=folder.name, device=device)
        source, cache = ImageSource(Path(config.data.images)), Path(config.data.cache)

        def rows_of(images: CaptionedImages) -> Tensor:
            names = [record.image for record in images.records]
            with accelerator.main_process_first():
                return torch.from_numpy(scorer.embed_images(source, names, cache=cache)).to(device)

        if weights.self_retrieval:
            terms["self_retrieval"] = SelfRetrievalReward(
                scorer, rows_of(data.train), scale=scale, denominator=weights.denominator
            )
        if data.tuning is not None:
            tuning = TuningRetrieval(scorer, rows_of(data.tuning), scale, config.seed)
    if weights.cider_d:
        terms["cider_d"] = CiderReward(references)
    if weights.faithfulness:
        terms["faithfulness"] = FaithfulnessReward(references)
    if weights.grammar:
        terms["grammar"] = GrammarReward(load_grammar(Path(weights.grammar_checkpoint), device=device))
    if weights.fluency:
        terms["fluency"] = FluencyReward(open_language_model(Path(weights.language_model), device=device))
    return RewardParts(terms, tuning)


def bag_order(config: ReinforceConfig, data: ImageData, accelerator: Accelerator) -> BagOrder | None:
    """The order of a bag curriculum, or None for random batches.

    Raises:
        ConfigError: a bag file without bags that the curriculum names.
    """
    if not config.curriculum:
        return None
    from tellapart_training.bags import read_training_bags

    row_of = {record.image: row for row, record in enumerate(data.train.records)}
    bags, left_out = known_bags(config.curriculum, read_training_bags(Path(config.bags)), row_of)
    if accelerator.is_main_process:
        counts = ", ".join(f"{len(each)} {band} of {size}" for (band, size), each in bags.items())
        say_on_stderr(f"bags: {counts}; {left_out} left out, as an image of theirs is not trained on")
    return BagOrder(
        table=config.curriculum, bags=bags, seed=config.seed, batch_size=config.optimizer.batch_size,
        accumulate=config.optimizer.accumulate, max_steps=config.max_steps_per_epoch,
        processes=accelerator.num_processes,
    )  # fmt: skip
