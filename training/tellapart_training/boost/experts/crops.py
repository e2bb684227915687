"""Regions of a photo: the whole, its four corners and its centre, each as the retriever sees it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from tellapart.retriever import Retriever
from tellapart.types import FloatArray, PixelArray

SHARE = 0.6
"""Of a side that a region has."""


def regions_of(photo: PixelArray) -> list[PixelArray]:
    """Top left, top right, bottom left, bottom right, centre; each 0.6 of the photo's height and width."""
    height, width = photo.shape[:2]
    tall, wide = max(1, int(height * SHARE)), max(1, int(width * SHARE))
    corners = [(y, x) for y in (0, height - tall) for x in (0, width - wide)]
    places = [*corners, ((height - tall) // 2, (width - wide) // 2)]
    return [np.ascontiguousarray(photo[y : y + tall, x : x + wide]) for y, x in places]


class Phrases:
    """Rows of short phrases, each embedded once; safe from many threads.

    Args:
        retriever: embeds them.
    """

    def __init__(self, retriever: Retriever) -> None:
        self._retriever, self._known, self._lock = retriever, dict[str, FloatArray](), threading.Lock()

    def rows(self, phrases: Sequence[str]) -> FloatArray:
        """(n, d) float32 unit rows."""
        with self._lock:
            new = [phrase for phrase in phrases if phrase not in self._known]
            if new:
                self._known.update(zip(new, self._retriever.embed_texts(new), strict=True))
            return np.stack([self._known[phrase] for phrase in phrases])
