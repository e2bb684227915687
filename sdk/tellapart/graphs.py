"""The graphs of a bundle as plain functions over arrays, by role.

Names, shapes and dtypes are those of the bundle format; a graph that answers otherwise is an error here, not
nonsense later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.backends import Session
from tellapart.decode import Hypothesis, Rules, checked, log_softmax
from tellapart.errors import BackendError
from tellapart.kv_cache import KVCache
from tellapart.types import FloatArray, IntArray, PixelArray

_NO_CROSS_KV: FloatArray = np.zeros((0, 1, 1, 0, 1), np.float32)


class VisionGraph:
    """An image to what the decoder attends to, and to its embedding."""

    def __init__(self, session: Session) -> None:
        """Wrap a session of role "vision"."""
        self.session = session

    def look(self, pixels: PixelArray | FloatArray) -> tuple[FloatArray, FloatArray]:
        """One image through the trunk.

        One at a time on purpose: in a batch, quantized graphs share a scale between images and float kernels
        may add in another order, so an image's answer would depend on its neighbours. A convolution fills
        the cores with one image anyway.

        Args:
            pixels: one image from `preprocess.to_input`.

        Returns:
            cross_kv (2L, 1, H, N, D) float32 and embedding (1, E) float32 of unit length; the one that the
            graph does not have (a captioner alone, a retriever alone) comes with N or E of 0.

        Raises:
            BackendError: the graph failed, or answered with another shape.
        """
        answer = self.session.run({"pixels": pixels[None]})
        cross_kv = answer.get("cross_kv", _NO_CROSS_KV)
        if cross_kv.ndim != 5 or cross_kv.shape[1] != 1:
            raise BackendError(
                f"the vision graph gave cross_kv {cross_kv.shape}, expected (2L, 1, H, N, D); export it again"
            )
        if "embedding" not in answer:
            return cross_kv, np.zeros((1, 0), np.float32)
        return cross_kv, unit_rows(answer["embedding"], 1, "vision")


class DecoderGraph:
    """The next token's log-probabilities, given what a `KVCache` remembers."""

    def __init__(self, session: Session) -> None:
        """Wrap a session of role "decoder"."""
        self.session = session
        self._rows_apart: bool | None = None
        self._shares_image: bool | None = None

    def step(self, ids: IntArray, cache: KVCache) -> FloatArray:
        """One step; a `decode.Step`.

        Args:
            ids: (n,) int64, the newest token of each row.
            cache: n rows; the keys and values of `ids` are appended to it.

        Returns:
            (n, V) float32 natural-log probabilities.

        Raises:
            BackendError: the graph failed, or gave numbers that are none.
        """
        answer = self._run(ids, cache)
        cache.append(answer["present_kv"])
        logprobs = log_softmax(answer["logits"])
        # One NaN or infinity spoils the sum of its row, so the first column knows about all.
        if not np.isfinite(logprobs[:, 0]).all():
            raise BackendError(
                f"the decoder graph gave numbers that are not finite at position {cache.length - 1}; "
                "compare the bundle with its checkpoint: tellapart export writes a parity report"
            )
        return logprobs

    def _run(self, ids: IntArray, cache: KVCache) -> dict[str, npt.NDArray[Any]]:
        """One run; beams of one image share its keys and values where that gives the same numbers.

        A graph whose attention is a plain matrix product stretches one image over all rows by itself, which
        saves a copy of it for every beam and step. Others refuse. Which it is is tried once, both ways.
        """
        feeds: dict[str, npt.NDArray[Any]] = {"ids": ids[:, None], "past_kv": cache.past}
        one = cache.shared_cross if self._shares_image is not False else None
        if one is None:
            return self.session.run({**feeds, "cross_kv": cache.cross})
        if self._shares_image:
            return self.session.run({**feeds, "cross_kv": one})
        answer = self.session.run({**feeds, "cross_kv": cache.cross})
        shared = self.session.run_quietly({**feeds, "cross_kv": one})
        self._shares_image = shared is not None and all(
            np.array_equal(shared[name], array) for name, array in answer.items()
        )
        return answer

    def keeps_rows_apart(self, cross_kv: FloatArray) -> bool:
        """Whether a row's numbers are the same, bit for bit, in a batch and alone.

        Only then are captions of several images decoded side by side. It is a property of the graph and the
        machine, so it is tried once: dynamic INT8 quantization takes one scale for the whole batch, and a
        matrix product may add in another order when it has one row only.

        Args:
            cross_kv: (2L, n, H, N, D) float32 of n >= 2 images.
        """
        if self._rows_apart is None:
            self._rows_apart = self._try_rows_apart(cross_kv)
        return self._rows_apart

    def _try_rows_apart(self, cross_kv: FloatArray) -> bool:
        count = cross_kv.shape[1]
        together = KVCache.empty(cross_kv)
        alone = [KVCache.empty(cross_kv[:, row : row + 1]) for row in range(count)]
        ids: IntArray = np.ones(count, np.int64)
        for _ in range(3):  # the past is empty, then short, then longer
            logprobs = self.step(ids, together)
            for row in range(count):
                if not np.array_equal(self.step(ids[row : row + 1], alone[row])[0], logprobs[row]):
                    return False
            ids = logprobs.argmax(axis=1)
        return True


class GreedyGraph:
    """A whole greedy caption in one run."""

    def __init__(self, session: Session) -> None:
        """Wrap a session that `backends.open_greedy` gave."""
        self.session = session

    def write(self, cross_kv: FloatArray, rules: Rules) -> Hypothesis | None:
        """The caption of one image; what `decode.greedy` finds, bit for bit.

        Args:
            cross_kv: (2L, 1, H, N, D) float32.
            rules: for which `decode.is_plain` holds.

        Returns:
            None where the steps have to be made one by one, see `decode.checked`, or the graph refuses.
        """
        lengths = {"most": rules.max_new_tokens + 1, "fewest": rules.min_new_tokens}
        feeds = {name: np.array(length, np.int64) for name, length in lengths.items()}
        answer = self.session.run_quietly({"cross_kv": cross_kv, **feeds})
        if answer is None:
            return None
        return checked(answer["tokens"], answer["all_logits"][:, 0], rules)


class TextGraph:
    """Token ids to embeddings."""

    def __init__(self, session: Session) -> None:
        """Wrap a session of role "text"."""
        self.session = session

    def embed(self, ids: Sequence[int]) -> FloatArray:
        """One sequence, start and end marks included; alone, for the reason given in `VisionGraph.look`.

        Args:
            ids: t ids.

        Returns:
            (E,) float32 of unit length.

        Raises:
            BackendError: the graph failed, or answered with another shape.
        """
        answer = self.session.run({"ids": np.array([ids], np.int64)})
        row: FloatArray = unit_rows(answer["embedding"], 1, "text")[0]
        return row


def unit_rows(embedding: npt.NDArray[Any], count: int, role: str) -> FloatArray:
    """Check the rows of a graph and take rounding out of their length.

    Args:
        embedding: (count, E), about unit length.
        count: how many rows were asked for.
        role: of the graph, for the message.

    Returns:
        (count, E) float32 of unit length.

    Raises:
        BackendError: another shape, or a row without a direction.
    """
    if embedding.ndim != 2 or embedding.shape[0] != count:
        raise BackendError(
            f"the {role} graph gave an embedding of shape {embedding.shape}, expected ({count}, E); "
            "export it again"
        )
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    if not np.isfinite(length).all() or not (length > 0).all():
        raise BackendError(
            f"the {role} graph gave an embedding without a direction (length {length.min()}); export it again"
        )
    return np.asarray(embedding / length, dtype=np.float32)
