"""A frozen retriever that judges captions: the reward's scorer, or a judge that training never saw.

Images are embedded once and kept on disk, so that scoring a caption costs its text alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tellapart.errors import DataError
from tellapart_training.batches import pad_ids
from tellapart_training.data import normalise_caption
from tellapart_training.images import ImageSource, pixel_cache, say_on_stderr
from tellapart_training.pair import TrainedPair, open_pair

PROGRESS_IMAGES = 1024
EmbeddingArray = npt.NDArray[np.float32]


class Scorer:
    """Text tower and image rows of a checkpoint whose weights never change.

    Attributes:
        name: what reports call it.
        sha256: of the checkpoint's manifest.
    """

    def __init__(self, pair: TrainedPair, *, name: str, device: torch.device) -> None:
        self._pair, self._device = pair, device
        self.name, self.sha256 = name, pair.sha256
        pair.network.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 512) -> Tensor:
        """Unit rows of texts, (n, d) float32 on the scorer's device.

        Texts are normalised as the text tower learnt them and cut to its length; equal texts cost once.
        """
        normal = [normalise_caption(text) for text in texts]
        # Texts of like lengths together: less padding.
        unique = sorted(set(normal), key=lambda text: (len(text), text))
        row_of = {text: row for row, text in enumerate(unique)}
        rows = []
        for start in range(0, len(unique), batch_size):
            ids = [self._pair.encode(text) for text in unique[start : start + batch_size]]
            padded = pad_ids(ids, self._pair.tokenizer.pad_id).to(self._device)
            rows.append(self._pair.network.embed_text(padded).float())
        index = torch.tensor([row_of[text] for text in normal], device=self._device)
        return torch.cat(rows)[index]

    @torch.no_grad()
    def embed_images(
        self, source: ImageSource, names: Sequence[str], *, cache: Path, batch_size: int = 32
    ) -> EmbeddingArray:
        """Unit rows of images, (n, d) float32; computed on the first call and read back on later ones.

        Raises:
            DataError: an image is missing or cannot be read, or a cache file that does not fit.
        """
        rule = [self.sha256, source.identity, list(names)]
        key = hashlib.sha256(json.dumps(rule).encode()).hexdigest()[:20]
        path = cache / f"embeddings-{key}.npy"
        if not path.exists():
            pixels = pixel_cache(source, names, self._pair.preprocessing, cache)
            rows = []
            for start in range(0, len(names), batch_size):
                batch = torch.from_numpy(np.array(pixels[start : start + batch_size])).to(self._device)
                features = self._pair.network.features(batch)
                rows.append(self._pair.network.embed_features(features).float().cpu().numpy())
                done = start + len(batch)
                if done % PROGRESS_IMAGES == 0:
                    say_on_stderr(f"{self.name}: embedded {done} of {len(names)} images")
            scratch = cache / f"embeddings-{key}.{os.getpid()}.tmp"
            try:
                with scratch.open("wb") as file:
                    np.save(file, np.concatenate(rows), allow_pickle=False)
                os.replace(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
        stored: EmbeddingArray = np.load(path, allow_pickle=False)
        if len(stored) != len(names):
            raise DataError(f"cache {path} holds {stored.shape}: delete it and start again")
        return stored


def open_scorer(checkpoint: Path, *, device: torch.device | None = None) -> Scorer:
    """Open a retriever checkpoint as a scorer, named after its folder (or the folder above `last`/`best`).

    Raises:
        CheckpointError: absent, damaged, or of another architecture.
    """
    folder = checkpoint.resolve()
    name = folder.parent.name if folder.name in ("last", "best") else folder.name
    return Scorer(open_pair(checkpoint), name=name, device=device or torch.device("cpu"))
