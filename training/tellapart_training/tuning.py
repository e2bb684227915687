"""Figures on the held-back images while a network trains: what picks the best epoch."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tellapart_training.batches import CaptionedImages, pad_ids
from tellapart_training.captioner import TrainedCaptioner
from tellapart_training.captioning import captions_of
from tellapart_training.losses import caption_inputs_and_labels, mle_loss
from tellapart_training.metrics import cider_d, metric_words
from tellapart_training.pair import TrainedPair
from tellapart_training.recall import recall_both_ways


class TuningFigures(NamedTuple):
    """What was measured, and the greedy captions it was measured on."""

    figures: dict[str, float]
    lines: list[str]
    samples: list[dict[str, Any]]


def image_features(
    captioner: TrainedCaptioner, data: CaptionedImages, rows: range, device: torch.device
) -> Tensor:
    """Features of some images as they are, (b, N, C) float32."""
    if data.features is not None:
        return torch.from_numpy(np.asarray(data.features[rows.start : rows.stop, 0], dtype=np.float32)).to(
            device
        )
    pixels = np.array(data.pixels[rows.start : rows.stop])  # type: ignore[index]
    return captioner.network.features(torch.from_numpy(pixels).to(device))


def tuning_figures(
    captioner: TrainedCaptioner,
    data: CaptionedImages,
    *,
    device: torch.device,
    captions: bool,
    caption_images: int,
    sample_images: int,
    batch_size: int = 32,
) -> TuningFigures:
    """Figures of a network in eval mode, gradients off.

    Args:
        captioner: the network and its tokenizer.
        data: held-back images; without human captions only greedy captions are made.
        device: of the network.
        captions: whether the captioner is measured too.
        caption_images: how many images are captioned.
        sample_images: how many of those captions are samples to read.
        batch_size: images at once.

    Returns:
        Recall both ways, where it is a retriever too; for a captioner also the loss per token in nats
        without smoothing and CIDEr-D of the greedy captions.
    """
    described = any(data.ids)
    pair = captioner.network if isinstance(captioner, TrainedPair) else None
    images, texts, owners, lines = [], [], [], []
    nats, tokens = 0.0, 0
    for start in range(0, len(data) if described else min(len(data), caption_images), batch_size):
        rows = range(start, min(start + batch_size, len(data)))
        features = image_features(captioner, data, rows, device)
        condition = captioner.network.condition(features) if captions else None
        if condition is not None and start < caption_images:
            lines.extend(captions_of(captioner, condition))
        if not described:
            continue
        flat = [ids for row in rows for ids in data.ids[row]]
        own = [row for row in rows for _ in data.ids[row]]
        ids = pad_ids(flat, captioner.marks.pad).to(device)
        if pair is not None:
            images.append(pair.embed_features(features).float().cpu())
            texts.append(pair.embed_text(ids).float().cpu())
            owners.extend(own)
        if condition is None:
            continue
        inputs, labels = caption_inputs_and_labels(ids, captioner.marks.pad)
        index = torch.tensor(own, device=device) - start
        logits = captioner.network.logits(inputs, condition.index_select(1, index))
        nats += float(mle_loss(logits, labels))
        tokens += int((labels >= 0).sum())
    lines = lines[:caption_images]
    figures: dict[str, float] = {}
    if described:
        if pair is not None:
            similarity = torch.cat(texts) @ torch.cat(images).T
            figures = recall_both_ways(similarity.numpy(), np.asarray(owners, dtype=np.int64))
        if captions:
            figures = {"tuning_loss": nats / max(1, tokens), **figures}
        if lines:
            references = [[metric_words(text) for text in record.captions] for record in data.records]
            scores = cider_d([metric_words(line) for line in lines], references[: len(lines)])
            figures["cider_d"] = float(np.mean(scores))
    samples = [
        {"image": data.records[row].image, "caption": line, "references": list(data.records[row].captions)}
        for row, line in enumerate(lines[:sample_images])
    ]
    return TuningFigures(figures, lines, samples)
