"""Captions of a camera, as they happen: the present frame, and a word only when the scene is new.

    with Captioner.open() as captioner, LiveCaptions(captioner, camera.read) as live:
        for result in live:
            if result.caption is not None:
                print(result.age_ms, result.caption.text)

Four rules make it fit for a machine that moves:

- the latest frame wins: what arrives while a caption is made gives way to what comes after, and is counted;
- a scene that was captioned is not captioned again, see `tellapart.scene`;
- a frame has a deadline, and its caption says `truncated` where the deadline cut it;
- a camera that fails or falls silent is a `SourceError`, one that ends is the end of the loop.

Every look costs one vision pass; `look_every_s` bounds how many there are, and so the share of a core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tellapart.errors import ClosedError, ImageError, UsageError
from tellapart.frames import FrameSource, Grabber, TakenFrame
from tellapart.scene import SceneGate
from tellapart.types import Caption, DecodeOptions, View

if TYPE_CHECKING:
    from tellapart.captioner import Captioner

__all__ = ["LiveCaptions", "LiveOptions", "LiveResult", "LiveState"]

LiveState: TypeAlias = Literal["new", "same", "changing", "failed"]
"""What became of a frame: captioned; nothing to say; the view is on the move; the frame cannot be used."""


@dataclass(frozen=True, kw_only=True)
class LiveOptions:
    """How a camera is watched.

    Raises:
        UsageError: a field out of its range.
    """

    look_every_s: float = 0.5
    """Shortest time between two looks; 0 looks again at once."""

    deadline_ms: float | None = None
    """Milliseconds from a frame's arrival to its caption. The first word is always sought; what is not found
    in time is missing and the caption says `truncated`."""

    stall_s: float | None = 5.0
    """Longest wait for a frame before the camera counts as gone; None waits for ever."""

    refresh_s: float | None = None
    """Caption an unchanged scene again after this time; None never does."""

    wait: bool = False
    """True makes the source wait until its frame was taken, as for a folder or a file where every frame
    counts; False lets the latest frame win."""

    decode: DecodeOptions = field(default_factory=DecodeOptions)
    """How captions are searched for."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name, value, optional in (
            ("look_every_s", self.look_every_s, False),
            ("deadline_ms", self.deadline_ms, True),
            ("stall_s", self.stall_s, True),
            ("refresh_s", self.refresh_s, True),
        ):
            least = "at least 0" if name == "look_every_s" else "above 0"
            if value is None:
                if optional:
                    continue
            elif 0 < value < float("inf") or (value == 0 and not optional):
                continue
            raise UsageError(f"{name} must be {least}{' or None' if optional else ''}, got {value!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveResult:
    """What became of one frame."""

    frame: int
    """Place of the frame among all that the source gave, from 1."""

    unix_s: float
    """Seconds since 1970 when the frame arrived."""

    age_ms: float
    """Milliseconds from the frame's arrival to this result."""

    state: LiveState
    """See `LiveState`; only "new" carries a caption."""

    similarity: float | None = None
    """Cosine in [-1, 1] with the frame that was captioned last; None for the first."""

    dropped: int = 0
    """Frames that were replaced by newer ones since the result before this one."""

    caption: Caption | None = None
    """The caption of a new scene."""

    view: View | None = None
    """The vision pass, good for embeddings, search and bags; None where the frame failed."""

    error: ImageError | None = None
    """Why a frame failed; the loop goes on."""

    def to_record(self, *, embedding: bool = False) -> dict[str, Any]:
        """The result as plain JSON values.

        Args:
            embedding: add the row of the frame, E numbers.
        """
        record: dict[str, Any] = {
            "frame": self.frame,
            "time": round(self.unix_s, 3),
            "age_ms": round(self.age_ms, 1),
            "state": self.state,
            "similarity": None if self.similarity is None else round(self.similarity, 4),
            "dropped": self.dropped,
        }
        if self.caption is not None:
            record |= {
                "caption": self.caption.text,
                "mean_logprob": round(self.caption.mean_logprob, 6),
                "confidence": self.caption.confidence,
                "truncated": self.caption.truncated,
                "elapsed_ms": {stage: round(ms, 3) for stage, ms in self.caption.elapsed_ms.items()},
            }
        if self.error is not None:
            record["error"] = {"type": type(self.error).__name__, "message": str(self.error)}
        if embedding and self.view is not None:
            record["embedding"] = [round(float(value), 5) for value in self.view.embedding[0]]
        return record


class LiveCaptions:
    """An iterator of `LiveResult`, one for each look at a frame; a context manager.

    One thread iterates; `close` may be called from any thread at any moment, waits for the caption in flight,
    and ends the iteration. The captioner is the caller's and stays open.

    Attributes:
        captioned: captions made so far.
    """

    def __init__(
        self,
        captioner: Captioner,
        frames: FrameSource,
        *,
        options: LiveOptions | None = None,
        gate: SceneGate | None = None,
    ) -> None:
        """Open what a caption needs, so that the first frame need not wait for it, and start to read frames.

        Args:
            captioner: an open captioner; it may serve others at the same time.
            frames: an iterable, or a callable that returns the next frame and None at the end; it is read in
                a thread of its own. A frame is whatever `Captioner.look` takes, mostly (h, w, 3) uint8 RGB,
                and must not be written to afterwards.
            options: how often, how late, how long.
            gate: what counts as a new scene; None is `SceneGate()`.

        Raises:
            UsageError: frames that are neither an iterable nor a callable.
            BackendError: the runtime refuses a graph.
            ClosedError: the captioner was closed.
        """
        blank = np.zeros((8, 8, 3), np.uint8)
        captioner.caption(blank, options=DecodeOptions(beams=1, max_new_tokens=1, rerank=0.0))
        self._captioner = captioner
        self._options = options or LiveOptions()
        self._gate = gate or SceneGate()
        self._busy = threading.RLock()  # held while a frame is at work; re-entrant, for a signal handler
        self._closed = False
        self._look_s = self._captioned_s = float("-inf")
        self.captioned = 0
        self._grabber = Grabber(frames, wait=self._options.wait)

    @property
    def frames(self) -> int:
        """Frames that the source gave so far."""
        return self._grabber.frames

    @property
    def dropped(self) -> int:
        """Frames that were replaced by newer ones before anybody looked."""
        return self._grabber.dropped

    def __enter__(self) -> LiveCaptions:
        """The loop itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __iter__(self) -> Iterator[LiveResult]:
        """The loop itself."""
        return self

    def __next__(self) -> LiveResult:
        """Wait for a frame and look at it.

        Raises:
            SourceError: the source failed or fell silent; the loop is closed then.
            BackendError: the runtime failed.
            ClosedError: the captioner was closed, and this loop was not.
        """
        try:
            taken = self._grabber.take(
                stall_s=self._options.stall_s, not_before_s=self._look_s + self._options.look_every_s
            )
            if taken is not None:
                with self._busy:
                    if not self._closed:
                        return self._look(taken)
        except ClosedError:
            asked_for = self._closed  # both were closed while a caption was made: an end like any other
            self.close()
            if not asked_for:
                raise
        except BaseException:
            self.close()
            raise
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stop reading and end the iteration; waits for the caption in flight, further calls do nothing."""
        self._closed = True
        self._grabber.close()
        with self._busy:
            pass

    def _look(self, taken: TakenFrame) -> LiveResult:
        self._look_s = time.monotonic()
        try:
            view = self._captioner.look(taken.image)
        except ImageError as error:
            return self._result(taken, "failed", error=error)
        state = self._gate.decide(view.embedding)
        similarity = self._gate.similarity
        refresh_s = self._options.refresh_s
        if state == "same" and refresh_s is not None and self._look_s - self._captioned_s >= refresh_s:
            self._gate.forget()
            state = self._gate.decide(view.embedding)
        if state != "new":
            return self._result(taken, state, view=view, similarity=similarity)
        caption = self._captioner.caption(view, options=self._decode_options(taken))
        caption = replace(caption, elapsed_ms={**caption.elapsed_ms, **view.elapsed_ms})
        self._captioned_s = self._look_s
        self.captioned += 1
        return self._result(taken, state, view=view, similarity=similarity, caption=caption)

    def _decode_options(self, taken: TakenFrame) -> DecodeOptions:
        options, deadline_ms = self._options.decode, self._options.deadline_ms
        if deadline_ms is None:
            return options
        left_ms = max(deadline_ms - _age_ms(taken), 0.001)
        if options.deadline_ms is not None:
            left_ms = min(left_ms, options.deadline_ms)
        return replace(options, deadline_ms=left_ms)

    def _result(self, taken: TakenFrame, state: LiveState, **found: Any) -> LiveResult:
        return LiveResult(
            frame=taken.number,
            unix_s=taken.unix_s,
            age_ms=_age_ms(taken),
            state=state,
            dropped=taken.dropped,
            **found,
        )


def _age_ms(taken: TakenFrame) -> float:
    return (time.monotonic() - taken.taken_s) * 1000.0
