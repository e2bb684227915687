"""Fluency: how likely a caption is to a caption language model that never sees the image.

The model is a `warmup` checkpoint: a decoder trained on caption texts alone. It must be trained apart from
the captioner that is measured, from another start; the captioner's own warm-up is part of the captioner and
would flatter it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from tellapart_training.batches import pad_ids
from tellapart_training.data import normalise_caption
from tellapart_training.losses import IGNORED, caption_inputs_and_labels
from tellapart_training.pair import TrainedPair, no_image, open_pair


class TextLikelihood(NamedTuple):
    """Of one text: summed log-probability in nats, and how many pieces it sums, the end piece among them."""

    logprob: float
    pieces: int


class LanguageModel:
    """A frozen caption language model.

    Attributes:
        sha256: of the checkpoint's manifest.
    """

    def __init__(self, pair: TrainedPair, *, device: torch.device) -> None:
        self._pair, self._device, self.sha256 = pair, device, pair.sha256
        pair.network.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def likelihoods(self, texts: Sequence[str], *, batch_size: int = 256) -> list[TextLikelihood]:
        """Of each text, normalised as the model learnt it.

        Every text is scored with its end: one that was cut pays for ending where it does. Texts beyond the
        model's longest are cut to it.
        """
        ids = [self._pair.encode(normalise_caption(text)) for text in texts]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))  # like lengths together: less padding
        found: dict[int, TextLikelihood] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            padded = pad_ids([ids[row] for row in rows], self._pair.tokenizer.pad_id).to(self._device)
            inputs, labels = caption_inputs_and_labels(padded, self._pair.tokenizer.pad_id)
            cross_kv = no_image(self._pair, len(rows), self._device)
            logp = self._pair.network.decoder(inputs, cross_kv).float().log_softmax(-1)  # (b, t, v)
            counted = labels != IGNORED
            drawn = logp.gather(2, labels.clamp(min=0)[..., None])[..., 0].double()  # (b, t)
            sums = torch.where(counted, drawn, 0.0).sum(1).tolist()
            pieces = counted.sum(1).tolist()
            found.update(
                (row, TextLikelihood(*each))
                for row, each in zip(rows, zip(sums, pieces, strict=True), strict=True)
            )
        return [found[row] for row in range(len(ids))]

    def fluency(self, texts: Sequence[str]) -> float:
        """Mean log-probability per piece over all pieces of all texts, in nats; nearer to 0 is more usual."""
        likelihoods = self.likelihoods(texts)
        return sum(each.logprob for each in likelihoods) / max(1, sum(each.pieces for each in likelihoods))


def open_language_model(checkpoint: Path, *, device: torch.device | None = None) -> LanguageModel:
    """Open a `warmup` checkpoint as a language model.

    Raises:
        CheckpointError: absent, damaged, or of another architecture.
    """
    return LanguageModel(open_pair(checkpoint), device=device or torch.device("cpu"))
