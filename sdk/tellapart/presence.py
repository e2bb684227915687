"""How likely people are to say a piece of an image: a check on what captions name.

A captioner writes what goes well together, and a retriever hears the whole of a caption; neither asks of a
single word whether it is there. `presence.bin`, which a bundle may have, does: for each frequent piece of the
vocabulary a logistic model over the image's unit embedding, of the chance that any person would use it. It
was fitted to what people wrote (`tellapart presence`) and needs no list of objects. Only
a bag's mode `contrast` reads it. docs/bundle_format.md has the layout.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tellapart.errors import BundleError, ShapeError
from tellapart.similarity import RealArray
from tellapart.types import Caption, FloatArray, IntArray

if TYPE_CHECKING:
    from tellapart.bundle import Bundle

PRESENCE_NAME = "presence.bin"
"""File of a bundle that holds the models, at its top."""

UNKNOWN = -8.0
"""Log-chance of a piece without a model: people hardly ever use it."""

_HEAD = struct.Struct("<II")


class Presence:
    """Logistic models of pieces.

    Attributes:
        pieces: (n,) int64, rising ids.
        bias: (n,) float32.
        weights: (n, d) float32 over the unit embedding.
    """

    def __init__(self, pieces: IntArray, bias: FloatArray, weights: FloatArray) -> None:
        """Keep them."""
        self.pieces, self.bias, self.weights = pieces, bias, weights
        self._place = {int(piece): place for place, piece in enumerate(pieces)}

    @classmethod
    def from_bytes(cls, content: bytes, *, vocabulary_size: int, bundle: str = "") -> Presence:
        """Read a `presence.bin`.

        Args:
            content: of the file.
            vocabulary_size: pieces of the bundle.
            bundle: for the message of an error.

        Raises:
            BundleError: another length than its head says, pieces that do not rise or are not in the
                vocabulary, or a number that is not finite.
        """
        if len(content) < _HEAD.size:
            raise _bad(bundle, f"has {len(content)} bytes, expected a head of {_HEAD.size}")
        count, width = _HEAD.unpack_from(content)
        size = _HEAD.size + count * (12 + width)
        if len(content) != size or not count or not width:
            raise _bad(
                bundle, f"of {count} pieces and width {width} has {len(content)} bytes, expected {size}"
            )
        rows = np.frombuffer(content, _row(width), offset=_HEAD.size)
        pieces = rows["piece"].astype(np.int64)
        if (np.diff(pieces) <= 0).any() or pieces[-1] >= vocabulary_size:
            raise _bad(bundle, f"must name pieces below {vocabulary_size}, each once and rising")
        if not (np.isfinite(rows["bias"]).all() and np.isfinite(rows["scale"]).all()):
            raise _bad(bundle, "holds a number that is not finite")
        weights = rows["weights"].astype(np.float32) * rows["scale"][:, None]
        return cls(pieces, rows["bias"].astype(np.float32), weights)

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, vocabulary_size: int) -> Presence | None:
        """That of a bundle; None where it has none.

        Raises:
            BundleError: see `from_bytes`.
        """
        if PRESENCE_NAME not in bundle.manifest.files:
            return None
        content = bundle.read_bytes(PRESENCE_NAME)
        return cls.from_bytes(content, vocabulary_size=vocabulary_size, bundle=bundle.name)

    def to_bytes(self) -> bytes:
        """As a `presence.bin`; weights are rounded to 8 bits, with one scale for each piece."""
        largest = np.abs(self.weights).max(axis=1)
        scale = (np.where(largest > 0, largest, 1.0) / 127).astype(np.float32)
        rows = np.zeros(len(self.pieces), _row(self.weights.shape[1]))
        rows["piece"], rows["bias"], rows["scale"] = self.pieces, self.bias, scale
        rows["weights"] = np.rint(self.weights / scale[:, None])
        return _HEAD.pack(*self.weights.shape) + rows.tobytes()

    def log_chances(self, image_rows: FloatArray) -> RealArray:
        """Natural log of each piece's chance of being said of each image.

        Args:
            image_rows: (k, d) float32, unit embeddings.

        Returns:
            (k, n) float64, at most 0.

        Raises:
            ShapeError: embeddings of another width.
        """
        if image_rows.ndim != 2 or image_rows.shape[1] != self.weights.shape[1]:
            raise ShapeError(
                f"{PRESENCE_NAME} was fitted to embeddings of width {self.weights.shape[1]}, got "
                f"{image_rows.shape}; fit it to this bundle"
            )
        logits = np.asarray(image_rows @ self.weights.T + self.bias, np.float64)
        return np.asarray(-np.logaddexp(0.0, -logits), np.float64)

    def borne_out(self, captions: Sequence[Caption], image_rows: FloatArray) -> RealArray:
        """Sum over each caption's different pieces of their log-chances, for each image.

        Args:
            captions: n of them.
            image_rows: (k, d) float32, unit embeddings.

        Returns:
            (n, k) float64, in nats: lower with each piece that is not to be expected of the image.

        Raises:
            ShapeError: embeddings of another width.
        """
        chances = self.log_chances(image_rows)
        sums = np.zeros((len(captions), len(image_rows)))
        for row, caption in zip(sums, captions, strict=True):
            pieces = set(caption.token_ids)
            known = sorted(self._place[piece] for piece in pieces if piece in self._place)
            row += chances[:, known].sum(axis=1) + UNKNOWN * (len(pieces) - len(known))
        return sums


def _row(width: int) -> npt.DTypeLike:
    return np.dtype([("piece", "<u4"), ("bias", "<f4"), ("scale", "<f4"), ("weights", "i1", (width,))])


def _bad(bundle: str, reason: str) -> BundleError:
    return BundleError(f"{bundle or 'bundle'}: {PRESENCE_NAME} {reason}; fit it again", bundle=bundle)
