"""Graphs of fixed shapes behind the face of the others: free batch, a past that grows, texts of any length.

An NPU and Apple's Neural Engine have no free axes. So a graph for them takes one row at a time, a text filled
up to the longest, and for the decoder a window of the past whose last `position` places are real. An app may
keep that window itself: what comes out as `present_kv` goes in again. The decoding loop here knows of none,
so it is filled from the end before each run and cut after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.backends import Session
from tellapart.bundle import Bundle
from tellapart.errors import BackendError
from tellapart.manifest import GraphSpec
from tellapart.tokenizer import Tokenizer

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Inputs of fixed shapes by name -> outputs by name."""

POSITION = "position"
"""Input that a decoder of fixed shapes has besides: how many places of its past are real."""


def is_fixed(graph: GraphSpec) -> bool:
    """Whether no input of a graph has a free axis."""
    return all(isinstance(axis, int) for tensor in graph.inputs for axis in tensor.shape)


def pad_id_of(bundle: Bundle, role: str) -> int:
    """What short texts of a bundle are filled up with; 0 for graphs that read none.

    Raises:
        BundleError: the vocabulary cannot be read.
    """
    return Tokenizer.from_bundle(bundle).pad_id if role == "text" else 0


class FixedShapes:
    """Feeds of any size -> runs of fixed ones."""

    def __init__(self, graph: GraphSpec, run: Run, *, pad_id: int = 0) -> None:
        """Take the page of a graph without free axes and what runs it; short texts are filled by `pad_id`."""
        self._graph, self._run, self._pad_id = graph, run, pad_id
        self._pages = {tensor.name: tensor for tensor in graph.inputs}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs, row by row; feeds with a `position` are the graph's own and go in as they are.

        Raises:
            BackendError: other inputs, or a text or a past longer than the graph has room for.
        """
        if POSITION in feeds:
            return self._run(feeds)
        wanted = [name for name in self._pages if name != POSITION]
        if set(feeds) != set(wanted):
            raise BackendError(
                f"{self._graph.file} takes {', '.join(wanted)}, and was given {', '.join(feeds) or 'nothing'}"
            )
        run = {"vision": self._run, "decoder": self._step, "text": self._read}[self._graph.role]
        rows = [run(row) for row in _rows(feeds)]
        return {name: np.concatenate([row[name] for row in rows], axis=_row_axis(name)) for name in rows[0]}

    def _read(self, row: Mapping[str, Array]) -> dict[str, Array]:
        page, given = self._pages["ids"], row["ids"].shape[1]
        length = int(page.shape[1])
        if given > length:
            raise BackendError(f"{self._graph.file} takes texts of {length} tokens, got {given}")
        ids = np.full((1, length), self._pad_id, page.dtype)
        ids[:, :given] = row["ids"]
        return self._run({"ids": ids})

    def _step(self, row: Mapping[str, Array]) -> dict[str, Array]:
        shape = tuple(map(int, self._pages["past_kv"].shape))
        window, past = shape[3], row["past_kv"].shape[3]
        if past >= window:
            raise BackendError(
                f"{self._graph.file} has a window of {window} tokens, got a past of {past}; ask for at most "
                f"{window - 1} tokens, or export again with a larger --max-new-tokens"
            )
        held = np.zeros(shape, np.float32)
        held[:, :, :, window - past :] = row["past_kv"]
        found = self._run(
            {
                "ids": row["ids"].astype(self._pages["ids"].dtype),
                POSITION: np.array([past], self._pages[POSITION].dtype),
                "past_kv": held,
                "cross_kv": row["cross_kv"],
            }
        )
        return {**found, "present_kv": found["present_kv"][:, :, :, window - past - 1 :]}


class FixedSession(Session):
    """A `backends.Session` of free axes around one of fixed shapes."""

    def __init__(self, inner: Session, graph: GraphSpec, *, pad_id: int) -> None:
        """Take the session, its page, and what short texts are filled with."""
        self._inner, self._shapes = inner, FixedShapes(graph, inner.run, pad_id=pad_id)
        self.backend, self.providers, self.threads = inner.backend, inner.providers, inner.threads

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs; see `FixedShapes.run`."""
        return self._shapes.run(feeds)

    def close(self) -> None:
        """Give the memory back; further calls do nothing."""
        self._inner.close()


def _row_axis(name: str) -> int:
    return 1 if name.endswith("_kv") else 0


def _rows(feeds: Mapping[str, Array]) -> list[dict[str, Array]]:
    """A feed for each row of a batch; an array of one row is shared by all, as beams share their image."""
    count = max(array.shape[_row_axis(name)] for name, array in feeds.items())
    return [
        {
            name: array.take([min(row, array.shape[_row_axis(name)] - 1)], axis=_row_axis(name))
            for name, array in feeds.items()
        }
        for row in range(count)
    ]
