"""What a decoder remembers between steps: keys and values of the past and of the image.

Letters: L layers, H heads, D width of a head, N image tokens, P past tokens, n rows (beams or captions).
Layouts are those of the decoder graph: in axis 0, 2l holds the keys of layer l and 2l + 1 its values.

Keys and values of the image are written once, by the vision graph. Beams of one image read that one copy
where the graph can (`DecoderGraph`); a copy for each row is made only for rows of different images.
"""

from __future__ import annotations

import numpy as np

from tellapart.errors import ShapeError
from tellapart.types import FloatArray, IntArray


class KVCache:
    """Past and image keys and values of n rows; `select` keeps, drops, repeats and reorders rows.

    Attributes:
        past: (2L, n, H, P, D) float32, grows by one token a step.
    """

    def __init__(self, past: FloatArray, cross: FloatArray) -> None:
        """Start with one row an image; `KVCache.empty` is the way to call this."""
        self.past = past
        self._images = cross
        self._image_of_row: IntArray = np.arange(cross.shape[1])
        self._cross: FloatArray | None = cross

    @classmethod
    def empty(cls, cross_kv: FloatArray) -> KVCache:
        """A cache before the first step, one row an image.

        Args:
            cross_kv: (2L, n, H, N, D) float32, from the vision graph.

        Raises:
            ShapeError: not five axes, an odd first axis, or not float32.
        """
        if cross_kv.ndim != 5 or cross_kv.shape[0] % 2 or cross_kv.dtype != np.float32:
            raise ShapeError(
                f"cross_kv must be (2L, n, H, N, D) float32, got {cross_kv.shape} {cross_kv.dtype}; "
                "take it from Captioner.look of the same bundle"
            )
        layers, rows, heads, _, width = cross_kv.shape
        past = np.zeros((layers, rows, heads, 0, width), np.float32)
        return cls(past, cross_kv)

    @property
    def rows(self) -> int:
        """How many rows there are, n."""
        return int(self.past.shape[1])

    @property
    def length(self) -> int:
        """How many tokens the past holds, P: the position of the next one."""
        return int(self.past.shape[3])

    @property
    def cross(self) -> FloatArray:
        """(2L, n, H, N, D) float32, the image that each row describes; never changes by a step."""
        if self._cross is None:
            self._cross = self._images[:, self._image_of_row]
        return self._cross

    @property
    def shared_cross(self) -> FloatArray | None:
        """(2L, 1, H, N, D) float32 where all of two or more rows describe one image, else None."""
        first = self._image_of_row[:1]
        if self.rows < 2 or (self._image_of_row != first).any():
            return None
        return self._images if self._images.shape[1] == 1 else self._images[:, first]

    def append(self, present: FloatArray) -> None:
        """Take the past that a step gave back, longer by one token.

        Args:
            present: (2L, n, H, P + 1, D) float32.

        Raises:
            ShapeError: another shape.
        """
        wanted = (*self.past.shape[:3], self.length + 1, self.past.shape[4])
        if present.shape != wanted:
            raise ShapeError(f"the decoder gave present_kv of shape {present.shape}, expected {wanted}")
        self.past = present

    def select(self, rows: IntArray) -> None:
        """Make row i continue what row `rows[i]` was; rows may be dropped and repeated.

        Args:
            rows: (m,) int64, each in [0, n).
        """
        if np.array_equal(rows, np.arange(self.rows)):
            return
        self.past = self.past[:, rows]
        image_of_row = self._image_of_row[rows]
        # Beams change places within their image at most steps; its keys and values then stay where they are.
        if not np.array_equal(image_of_row, self._image_of_row):
            self._image_of_row, self._cross = image_of_row, None
