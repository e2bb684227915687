"""The rule that looks at the photo: a caption must be as near to it as the least near human caption.

A retriever judges. The mean of the human captions would be too strict for a judge of this size: half of what
people wrote would not pass it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from tellapart.errors import DataError, ImageError
from tellapart.retriever import Retriever
from tellapart.types import FloatArray
from tellapart_training.boost.parsing import Sentence
from tellapart_training.data import normalise_caption
from tellapart_training.images import ImageSource

_KEPT = 2048
_SLACK = 1e-4


class Gauge:
    """Similarities of captions with their photos; safe from many threads.

    Args:
        source: of the photos.
        scorer: bundle of the retriever; None is the embedded one.
    """

    def __init__(self, source: ImageSource, scorer: Path | None) -> None:
        self._source, self._retriever = source, Retriever.open(scorer)
        # Each photo's embedding, and the cosines of the texts it was asked about.
        self._photos: OrderedDict[str, tuple[FloatArray, dict[str, float]] | None] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Gauge:
        """The gauge itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the retriever go."""
        self._retriever.close()

    def similarities(self, image: str, texts: Sequence[str]) -> FloatArray | None:
        """Cosine of each text with a photo.

        Returns:
            (n,) float32 in [-1, 1]; None where the photo cannot be read.
        """
        known = self._known(image)
        if known is None or not texts:
            return None
        row, cosines = known
        new = [text for text in texts if text not in cosines]
        if new:
            rows = self._retriever.embed_texts([normalise_caption(text) for text in new])
            cosines.update(zip(new, (rows @ row).tolist(), strict=True))
        return np.asarray([cosines[text] for text in texts], np.float32)

    def fails(self, image: str, text: str, humans: Sequence[Sentence]) -> str:
        """Why a caption is too far from its photo; "" where it is not, or nobody can tell."""
        found = self.similarities(image, [text, *(human.text for human in humans)])
        if found is None or len(found) < 2:
            return ""
        own, least = float(found[0]), float(found[1:].min())
        if own >= least - _SLACK:
            return ""
        return (
            f"it fits the photo less than what people wrote (similarity {own:.2f}, theirs from {least:.2f})"
        )

    def _known(self, image: str) -> tuple[FloatArray, dict[str, float]] | None:
        with self._lock:
            if image in self._photos:
                return self._photos[image]
        found: tuple[FloatArray, dict[str, float]] | None
        try:
            found = (self._retriever.embed_images([self._source.read(image)])[0], {})
        except (ImageError, DataError):
            found = None
        with self._lock:
            self._photos[image] = found
            while len(self._photos) > _KEPT:
                self._photos.popitem(last=False)
        return found
