"""What is measured: a device bundle through the SDK, or a training checkpoint in torch, behind one face."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tellapart.captioner import Captioner
from tellapart.types import DecodeOptions, RuntimeOptions

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """Images after one vision pass.

    Attributes:
        embeddings: (b, E) float32 unit rows.
        views: whatever the subject captions from.
    """

    embeddings: FloatArray
    views: Any


class Written(Protocol):
    """A caption as a subject wrote it; see `captioning.WrittenCaption`."""

    @property
    def text(self) -> str:
        """The caption."""

    @property
    def cut(self) -> bool:
        """Whether it came to no end."""


@dataclass(frozen=True)
class DeviceCaption:
    """A caption of the SDK as a `Written`."""

    text: str
    cut: bool


class Subject(Protocol):
    """A model under measurement."""

    name: str
    kind: str
    sha256: str
    beams: int
    guidance: float
    can_retrieve: bool

    def look(self, images: Sequence[bytes]) -> Seen:
        """One vision pass over encoded images."""

    def captions(self, seen: Seen, rows: Sequence[int]) -> Sequence[Written]:
        """Captions of some of the images."""

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(m, E) float32 unit rows."""


class _BundleSubject:
    kind = "bundle"

    def __init__(self, captioner: Captioner, beams: int | None, guidance: float) -> None:
        manifest = captioner.bundle.manifest
        self.name, self.sha256 = manifest.name, captioner.bundle.sha256
        self.beams, self.guidance = beams or manifest.decoding.beams, guidance
        self.can_retrieve = "retriever" in manifest.kind
        self._captioner = captioner

    def look(self, images: Sequence[bytes]) -> Seen:
        views = [self._captioner.look(image) for image in images]
        return Seen(np.concatenate([view.embedding for view in views]), views)

    def captions(self, seen: Seen, rows: Sequence[int]) -> Sequence[Written]:
        views = [seen.views[row] for row in rows]
        options = DecodeOptions(beams=self.beams, guidance=self.guidance)
        found = self._captioner.caption_many(views, batch_size=max(1, len(views)), options=options)
        return [DeviceCaption(caption.text, caption.truncated) for caption in found]

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        return self._captioner.retriever.embed_texts(texts)


@contextmanager
def bundle_subject(
    bundle: Path | None, *, beams: int | None, threads: int, guidance: float = 1.0
) -> Iterator[Subject]:
    """Open a device bundle (None: the embedded one) through the SDK.

    Raises:
        BundleError: absent or damaged.
    """
    runtime = RuntimeOptions(threads=threads or "auto")
    with Captioner.open(bundle, runtime=runtime) as captioner:
        yield _BundleSubject(captioner, beams, guidance)


@contextmanager
def checkpoint_subject(checkpoint: Path, *, beams: int | None, threads: int) -> Iterator[Subject]:
    """Open a training checkpoint in torch; torch is imported here.

    Raises:
        CheckpointError: absent, damaged, or of another architecture.
    """
    import torch

    from tellapart_training.batches import pad_ids
    from tellapart_training.captioning import write_captions
    from tellapart_training.images import to_pixels
    from tellapart_training.pair import open_pair

    if threads:
        torch.set_num_threads(threads)
    pair = open_pair(checkpoint)
    pair.network.eval()

    class CheckpointSubject:
        name, kind, sha256 = str(checkpoint), "checkpoint", pair.sha256
        guidance, can_retrieve = 1.0, True

        def __init__(self) -> None:
            self.beams = beams or 3

        def look(self, images: Sequence[bytes]) -> Seen:
            pixels = np.stack([to_pixels(image, pair.preprocessing) for image in images])
            with torch.inference_mode():
                cross_kv, embedding = pair.network(torch.from_numpy(pixels))
            return Seen(embedding.numpy(), cross_kv)

        def captions(self, seen: Seen, rows: Sequence[int]) -> Sequence[Written]:
            if not rows:
                return []
            with torch.inference_mode():
                return write_captions(pair, seen.views[:, list(rows)], beams=self.beams)

        def embed_texts(self, texts: Sequence[str]) -> FloatArray:
            found = []
            with torch.inference_mode():
                for start in range(0, len(texts), 128):
                    ids = [pair.encode(text) for text in texts[start : start + 128]]
                    found.append(pair.network.embed_text(pad_ids(ids, pair.tokenizer.pad_id)).numpy())
            return np.concatenate(found)

    yield CheckpointSubject()
