"""One bundle at work: its graphs, opened when first needed, shared by a captioner and its retriever.

Threads: one engine is safe from many; a graph is opened by the first that asks while the others wait.

Fork: a runtime's threads do not live on in a child process, so the child opens the graphs anew at its first
use and leaves those of its parent untouched. Such a child must end as those of `multiprocessing` do, by
`os._exit`: after a bare `os.fork` an ordinary exit hangs in onnxruntime's own clean-up (seen with 1.32, also
where the child never used it). The start methods "spawn" and "forkserver" have no such trap.

Pickling: captioner and retriever travel as the path of their bundle and their options, and are opened again
where they arrive.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, cast

from tellapart.backends import Session, choose_backend, open_greedy, open_session
from tellapart.backends.threads import count_threads
from tellapart.bundle import Bundle, open_bundle
from tellapart.decode import Rules
from tellapart.errors import BackendError, ClosedError, UsageError
from tellapart.graphs import DecoderGraph, GreedyGraph, TextGraph, VisionGraph
from tellapart.guidance import null_image
from tellapart.image import load_image
from tellapart.preprocess import to_input
from tellapart.presence import Presence
from tellapart.tokenizer import Tokenizer
from tellapart.types import FloatArray, ImageInput, RuntimeOptions, View

_LOG = logging.getLogger(__name__)

_UNOPENED = object()  # None is a graph that the backend does not have

GraphT = TypeVar("GraphT", bound=VisionGraph | DecoderGraph | GreedyGraph | TextGraph | None)
ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


class _Opened:
    """What one process has opened."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.graphs: dict[str, VisionGraph | DecoderGraph | GreedyGraph | TextGraph | None] = {}
        self.null_kv: FloatArray | None = None
        self.presence: Presence | None = None
        self.load_ms = 0.0
        self.pool: ThreadPoolExecutor | None = None
        self.used_s = 0.0
        self.clock: threading.Timer | None = None


class Engine:
    """An open bundle and its graphs.

    Attributes:
        bundle: the verified bundle.
        path: what the bundle was opened by, absolute; None is the embedded one.
        runtime: backend, providers and threads.
        tokenizer: of the bundle's vocabulary.
    """

    def __init__(self, path: str | os.PathLike[str] | None, runtime: RuntimeOptions) -> None:
        """Verify the bundle and choose the backend; no graph is opened yet.

        Raises:
            BundleError: and its family, see `open_bundle`.
            BackendError: see `backends.choose_backend`.
            MissingExtraError: likewise.
            VocabularyError: the vocabulary cannot be used.
        """
        started = time.perf_counter()
        # A process that unpickles this may stand in another folder.
        self.path = None if path is None else os.path.abspath(os.fspath(path))
        self.runtime = runtime
        self.bundle: Bundle = open_bundle(path)
        try:
            choose_backend(self.bundle, runtime)
            self.tokenizer = Tokenizer.from_bundle(self.bundle)
        except BaseException:
            self.bundle.close()
            raise
        self._closed = False
        self._owner = os.getpid()
        # By process, see the top; what a parent opened stays referenced, as ending it here would wait for
        # threads that this process does not have.
        self._opened = {self._owner: _Opened()}
        self._opened[self._owner].load_ms = _since_ms(started)

    def vision(self) -> VisionGraph:
        """The vision graph."""
        return self._graph("vision", lambda: VisionGraph(self._session("vision")))

    def decoder(self) -> DecoderGraph:
        """The decoder graph."""
        return self._graph("decoder", lambda: DecoderGraph(self._session("decoder")))

    def greedy(self, rules: Rules) -> GreedyGraph | None:
        """The decoder as a graph of whole greedy captions; None where the backend has none.

        Args:
            rules: whose special ids are built in, those of the bundle; the rest is asked of each caption.
        """
        return self._graph("greedy", lambda: self._open_greedy(rules))

    def text(self) -> TextGraph:
        """The text graph."""
        return self._graph("text", lambda: TextGraph(self._session("text")))

    def check_open(self) -> None:
        """Refuse use after close.

        Raises:
            ClosedError: `close` was called.
        """
        if self._closed:
            raise ClosedError(
                f"the bundle {self.bundle.name} was closed; open another captioner or retriever, or use it "
                "inside its `with` block"
            )

    def take_load_ms(self) -> float:
        """Milliseconds spent on opening since this was last asked: of the bundle first, later of graphs."""
        opened = self._here()
        with opened.lock:
            spent, opened.load_ms = opened.load_ms, 0.0
        return spent

    def spread(self, work: Callable[[ItemT], FoundT], items: Sequence[ItemT]) -> list[FoundT]:
        """Small independent runs of one graph, side by side on as many threads as the options allow.

        Each is the same run as alone, so the results are too. The first error is raised.

        Args:
            work: must not call this again.
            items: what to do.

        Returns:
            The results in the order of the items.
        """
        width = count_threads(self.runtime)
        if width == 1 or len(items) < 2:
            return [work(item) for item in items]
        opened = self._here()
        with opened.lock:
            self.check_open()
            if opened.pool is None:  # its threads start when they are needed, and sleep in between
                opened.pool = ThreadPoolExecutor(width, "tellapart-texts")
            found = [opened.pool.submit(work, item) for item in items]
        return [future.result() for future in found]

    def close(self) -> None:
        """Let all graphs and the bundle go; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        opened = self._here()
        with opened.lock:
            for graph in opened.graphs.values():
                if graph is not None:
                    graph.session.close()
            opened.graphs.clear()
            opened.null_kv = None
            opened.presence = None
            pool, opened.pool = opened.pool, None
            if opened.clock is not None:
                opened.clock.cancel()
        if pool is not None:  # what was handed to it is still done
            pool.shutdown(wait=False)
        # A zip's unpacked copy belongs to the process that unpacked it, and a child must not take it away.
        if os.getpid() == self._owner:
            self.bundle.close()
        give_memory_back()

    def look(self, image: ImageInput | View) -> View:
        """One vision pass; a View of this bundle comes back as it is.

        Raises:
            ImageError: the image cannot be used.
            UsageError: a View from another bundle.
            ClosedError: after `close`.
        """
        self.check_open()
        if isinstance(image, View):
            if image.bundle_sha256 != self.bundle.sha256:
                raise UsageError(
                    f"this View was made by bundle {image.bundle_sha256[:12] or '(none)'}, and this is "
                    f"{self.bundle.sha256[:12]}; look at the image again with this one"
                )
            return image
        started = time.perf_counter()
        rgb = load_image(image, max_megapixels=self.runtime.max_image_megapixels)
        pixels = to_input(rgb, self.bundle.manifest.preprocessing)
        preprocess_ms = _since_ms(started)
        vision = self.vision()
        started = time.perf_counter()
        cross_kv, embedding = vision.look(pixels)
        for array in (cross_kv, embedding):
            array.flags.writeable = False  # a View is kept and handed round
        return View(
            cross_kv=cross_kv,
            embedding=embedding,
            elapsed_ms={"preprocess": preprocess_ms, "vision": _since_ms(started)},
            bundle_sha256=self.bundle.sha256,
        )

    def null_kv(self) -> FloatArray:
        """What the decoder attends to where there is no image, (2L, 1, H, N, D) float32; see `guidance`.

        One vision pass when it is first asked for, counted as loading; kept until the graphs are let go.

        Raises:
            ClosedError: after `close`.
        """
        self.check_open()
        opened = self._here()
        found = opened.null_kv
        if found is None:
            vision = self.vision()
            started = time.perf_counter()
            preprocessing = self.bundle.manifest.preprocessing
            found, _ = vision.look(to_input(null_image(preprocessing.image_px), preprocessing))
            with opened.lock:
                opened.load_ms += _since_ms(started)
                # Two threads that ask at once made the same; what `close` let go stays gone.
                if not self._closed:
                    opened.null_kv = found
        return found

    def presence(self) -> Presence | None:
        """What the bundle knows of each piece's chance of being said, see `tellapart.presence`.

        Read when it is first asked for, kept until the graphs are let go; None where the bundle has none.

        Raises:
            BundleError: a file that cannot be used.
            ClosedError: after `close`.
        """
        self.check_open()
        opened = self._here()
        found = opened.presence
        if found is None:
            found = Presence.from_bundle(self.bundle, vocabulary_size=self.tokenizer.vocabulary_size)
            with opened.lock:
                if not self._closed:
                    opened.presence = found
        return found

    def _here(self) -> _Opened:
        # setdefault is one step even when two threads of a new child come here together.
        return self._opened.setdefault(os.getpid(), _Opened())

    def _session(self, role: str) -> Session:
        return open_session(self.bundle, role, self.runtime)

    def _open_greedy(self, rules: Rules) -> GreedyGraph | None:
        try:
            session = open_greedy(
                self.bundle,
                self.runtime,
                start_id=rules.start_id,
                end_id=rules.end_id,
                banned_ids=rules.banned_ids,
            )
        except BackendError as error:  # a decoder that a loop cannot hold still works step by step
            _LOG.info("greedy captions are made step by step: %s", error)
            return None
        return None if session is None else GreedyGraph(session)

    def _graph(self, key: str, open_graph: Callable[[], GraphT]) -> GraphT:
        opened = self._here()
        opened.used_s = time.monotonic()
        found = opened.graphs.get(key, _UNOPENED)
        if found is _UNOPENED or self._closed:
            with opened.lock:
                self.check_open()
                found = opened.graphs.get(key, _UNOPENED)
                if found is _UNOPENED:
                    started = time.perf_counter()
                    found = opened.graphs[key] = open_graph()
                    opened.load_ms += _since_ms(started)
                    opened.used_s = time.monotonic()
                    if opened.clock is None and self.runtime.idle_unload_s is not None:
                        self._wind(opened, self.runtime.idle_unload_s)
        return cast(GraphT, found)

    def _wind(self, opened: _Opened, seconds: float) -> None:
        opened.clock = threading.Timer(seconds, self._unload_if_idle, (opened,))
        opened.clock.daemon = True
        opened.clock.start()

    def _unload_if_idle(self, opened: _Opened) -> None:
        """Let graphs go that nobody asked for in a while; a search under way keeps its own."""
        idle_s = self.runtime.idle_unload_s or 0.0
        with opened.lock:
            if self._closed:
                return
            left_s = opened.used_s + idle_s - time.monotonic()
            if left_s > 0:
                self._wind(opened, left_s)
                return
            opened.graphs.clear()
            opened.null_kv = None
            opened.presence = None
            opened.clock = None
        give_memory_back()


def give_memory_back() -> None:
    """Hand freed memory to the system, which C's allocator does by itself only now and then; Linux alone."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with suppress(OSError, AttributeError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)


def _since_ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0
