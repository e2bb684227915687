"""Retriever: images and texts as unit rows of one space, and search among them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from tellapart.bundle import Bundle
from tellapart.engine import Engine
from tellapart.errors import BackendError, BundleError, ClosedError, UsageError
from tellapart.manifest import KINDS
from tellapart.types import FloatArray, ImageInput, RuntimeOptions, View

if TYPE_CHECKING:
    from tellapart.search import ImageIndex, Match


class Retriever:
    """Embeds images and texts; a context manager, safe from many threads.

        with Retriever.open() as retriever:
            rows = retriever.embed_images(paths)           # (n, d) float32, unit rows
            asked = retriever.embed_texts(["a red kite"])  # (1, d)
            scores = asked @ rows.T                        # cosines

    After a fork it opens its graphs anew in the child; it pickles as the path of its bundle and its options.
    """

    def __init__(self, engine: Engine, *, owns_engine: bool = True) -> None:
        """Use `Retriever.open`, or `Captioner.retriever` to share the captioner's graphs."""
        require_kind(engine.bundle, "retriever")
        self._engine = engine
        self._owns_engine = owns_engine
        self._closed = False

    @classmethod
    def open(
        cls, bundle: str | os.PathLike[str] | None = None, *, runtime: RuntimeOptions | None = None
    ) -> Retriever:
        """Open a bundle; graphs are loaded when they are first needed.

        Args:
            bundle: a folder or an uncompressed zip; None is the bundle inside the package.
            runtime: backend, providers, threads, largest image.

        Raises:
            BundleError: and its family: absent, damaged, newer, or not a retriever.
            BackendError: a backend or provider that was asked for is not there.
            MissingExtraError: no runtime is installed.
        """
        engine = Engine(bundle, runtime or RuntimeOptions())
        try:
            return cls(engine)
        except BaseException:
            engine.close()
            raise

    @property
    def bundle(self) -> Bundle:
        """The bundle at work."""
        return self._engine.bundle

    @property
    def width(self) -> int:
        """Width of an embedding, d, as the manifest says.

        Raises:
            BackendError: the manifest leaves it open.
        """
        for graph in self.bundle.manifest.graphs:
            for tensor in graph.outputs:
                if (
                    graph.role == "vision"
                    and tensor.name == "embedding"
                    and isinstance(tensor.shape[-1], int)
                ):
                    return tensor.shape[-1]
        raise BackendError(f"the manifest of {self.bundle.name} does not say how wide an embedding is")

    def __enter__(self) -> Retriever:
        """The retriever itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Path and options; the graphs are opened again where this arrives."""
        return _reopen, (self._engine.path, self._engine.runtime)

    def close(self) -> None:
        """Release the graphs, but for those shared with a captioner; further calls do nothing."""
        self._closed = True
        if self._owns_engine:
            self._engine.close()

    def embed_images(self, images: Iterable[ImageInput | View]) -> FloatArray:
        """Images as unit rows.

        Args:
            images: each a path, bytes, a PIL image, a (h, w, 3) uint8 RGB array, or a View of this bundle.

        Returns:
            (n, d) float32 of unit length, in the order of the images; (0, d) for none.

        Raises:
            ImageError: one of them cannot be used; the error names it.
            ClosedError: after `close`.
        """
        self._check_open()
        _check_many(images, "images", (str, bytes, os.PathLike, View))
        return self._stack(self._engine.look(image).embedding[0] for image in images)

    def embed_texts(self, texts: Iterable[str]) -> FloatArray:
        """Texts as unit rows.

        A text longer than the text graph reads (`max_text_tokens` of the bundle, marks included) is never cut
        off: its pieces are shared out over as few windows as hold them, evenly and between words where that
        is possible, and its row is the mean of the windows' rows, made unit length again.

        Args:
            texts: any strings, also empty ones.

        Returns:
            (n, d) float32 of unit length, in the order of the texts; (0, d) for none.

        Raises:
            UsageError: one string instead of several, or something that is not a string.
            ClosedError: after `close`.
        """
        self._check_open()
        _check_many(texts, "texts", (str, bytes))
        asked = list(texts)
        for text in asked:
            if not isinstance(text, str):
                raise UsageError(f"a text must be a string, got {type(text).__name__}")
        distinct = list(dict.fromkeys(asked))
        rows = dict(zip(distinct, self._engine.spread(self._embed_text, distinct), strict=True))
        return self._stack(rows[text] for text in asked)

    def search(self, text: str, index: ImageIndex, *, top: int = 5) -> tuple[Match, ...]:
        """The images of an index that a text describes best.

        Args:
            text: what to look for.
            index: from `search.open_index` with a retriever of the same bundle.
            top: most matches wanted, from 1.

        Returns:
            Up to `top` matches, best first; equal scores in the order of the index.

        Raises:
            UsageError: an index of another bundle, or `top` below 1.
            ClosedError: after `close`.
        """
        if index.model_sha256 != self.bundle.sha256:
            raise UsageError(
                f"this index was made by bundle {index.model_sha256[:12]}, and this is "
                f"{self.bundle.sha256[:12]}; make it again with open_index"
            )
        return index.nearest(self.embed_texts([text])[0], top=top)

    def look(self, image: ImageInput | View) -> View:
        """One vision pass, as `Captioner.look`."""
        self._check_open()
        return self._engine.look(image)

    def _embed_text(self, text: str) -> FloatArray:
        tokenizer = self._engine.tokenizer
        start, *pieces, end = tokenizer.encode(text)
        room = self.bundle.manifest.vocabulary.max_text_tokens - 2
        windows = [pieces]
        if len(pieces) > room:
            windows = list(share_out(pieces, tokenizer.joins(text), room))
        graph = self._engine.text()
        mean = np.mean([graph.embed([start, *window, end]) for window in windows], axis=0)
        length = float(np.linalg.norm(mean))
        if length == 0:  # windows that cancel out to the last bit: the first speaks for the text
            return graph.embed([start, *windows[0], end])
        return np.asarray(mean / length, dtype=np.float32)

    def _stack(self, rows: Iterable[FloatArray]) -> FloatArray:
        found = list(rows)
        return np.stack(found) if found else np.zeros((0, self.width), np.float32)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(
                "this retriever was closed; open another one, or use it inside its `with` block"
            )
        self._engine.check_open()


def share_out(pieces: Sequence[int], joins: Sequence[bool], room: int) -> Iterator[list[int]]:
    """Cut pieces into as few windows as `room` allows, of about equal length, between words where possible.

    Args:
        pieces: ids of a text without marks.
        joins: for each piece whether it continues the word before.
        room: most pieces in a window, from 1.

    Yields:
        Windows that give the pieces when put one after the other.
    """
    first = 0
    while first < len(pieces):
        left = len(pieces) - first
        windows = -(-left // room)
        last = first + -(-left // windows)
        # Back to the start of a word, unless the rest would then need a window more.
        cut = last
        while cut > first + 1 and cut < len(pieces) and joins[cut]:
            cut -= 1
        fits = len(pieces) - cut <= (windows - 1) * room
        if cut < len(pieces) and (joins[cut] or not fits):
            cut = last
        yield list(pieces[first:cut])
        first = cut


def require_kind(bundle: Bundle, kind: str) -> None:
    """Refuse a bundle that is not of a kind.

    Raises:
        BundleError: it says in its manifest what it is.
    """
    if kind not in bundle.manifest.kind:
        raise BundleError(
            f"{bundle.name} is a {' and '.join(bundle.manifest.kind)}, and a {kind} is needed (graphs "
            f"{', '.join(KINDS[kind])}); open another bundle, or export both halves of the checkpoint",
            bundle=bundle.name,
        )


def _check_many(values: Any, what: str, single: tuple[type, ...]) -> None:
    # A string is an iterable of strings, one letter each: a slip that would give rows without a word.
    if isinstance(values, single) or not isinstance(values, Iterable):
        raise UsageError(
            f"{what} must be a list or another iterable, got one {type(values).__name__}; wrap it: [x]"
        )


def _reopen(path: str | None, runtime: RuntimeOptions) -> Retriever:
    return Retriever.open(path, runtime=runtime)
