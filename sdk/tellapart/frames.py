"""Frames on their way from a camera to whoever looks at them: a mailbox with one place, filled by a thread.

A camera does not wait. What is not taken in time is replaced by the newer frame and counted, so the reader
always gets the present and never a queue of the past. A folder or a file can wait: with `wait=True` every
frame is handed over, in order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from tellapart.errors import SourceError, UsageError
from tellapart.types import ImageInput

__all__ = ["FrameSource", "Grabber", "TakenFrame"]

FrameSource: TypeAlias = "Iterable[ImageInput] | Callable[[], ImageInput | None]"
"""Frames from anywhere: an iterable, or a callable that returns the next frame, and None at the end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TakenFrame:
    """One frame as it came."""

    image: ImageInput
    number: int
    """Place among all frames of the source, from 1; those replaced in between were dropped."""

    taken_s: float
    """`time.monotonic()` of its arrival."""

    unix_s: float
    """`time.time()` of its arrival."""

    dropped: int
    """Frames that were replaced since the last one taken."""


class Grabber:
    """Reads a source in a thread of its own into a mailbox with one place.

    The thread is a daemon: a camera that hangs for ever inside its driver does not keep a program alive.
    """

    def __init__(self, source: FrameSource, *, wait: bool = False) -> None:
        """Start reading.

        Args:
            source: frames; a generator is closed by the thread that reads it, so its `finally` may release
                the camera.
            wait: hold the source back until its frame was taken, instead of replacing it.

        Raises:
            UsageError: neither an iterable nor a callable.
        """
        self._frames = _iterate(source)
        self._wait = wait
        self._news = threading.Condition()
        self._held: TakenFrame | None = None
        self._ended = self._closed = False
        self._failure: BaseException | None = None
        self.frames = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._grab, name="tellapart-frames", daemon=True)
        self._thread.start()

    def take(self, *, stall_s: float | None, not_before_s: float = 0.0) -> TakenFrame | None:
        """The newest frame, waited for where there is none.

        Args:
            stall_s: longest wait for a frame; None waits for ever.
            not_before_s: `time.monotonic()` before which no frame is taken, so that it is fresh then.

        Returns:
            The frame; None when the source has ended or `close` was called.

        Raises:
            SourceError: the source failed, or no frame came in time.
        """
        with self._news:
            while (left_s := not_before_s - time.monotonic()) > 0 and not self._closed:
                self._news.wait(left_s)
            waiting_since_s = time.monotonic()
            while self._held is None and not self._closed:
                if self._failure is not None:
                    raise SourceError(
                        f"the source of frames failed after {self.frames} frames: "
                        f"{type(self._failure).__name__}: {self._failure}; open the camera again"
                    ) from self._failure
                if self._ended:
                    return None
                silent_s = time.monotonic() - waiting_since_s
                if stall_s is not None and silent_s >= stall_s:
                    raise SourceError(
                        f"no frame for {stall_s:g} s, after {self.frames} frames: is the camera still there? "
                        "Open it again, or raise stall_s"
                    )
                self._news.wait(None if stall_s is None else stall_s - silent_s)
            if self._closed:
                return None
            taken, self._held = self._held, None
            self._news.notify_all()
            return taken

    def close(self, *, wait_s: float = 1.0) -> None:
        """Stop reading; waits a moment for the thread, which a camera may hold. Further calls do nothing."""
        with self._news:
            self._closed, self._held = True, None
            self._news.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(wait_s)

    def _grab(self) -> None:
        try:
            for image in self._frames:
                if not self._put(image):
                    break
        except Exception as error:  # whatever a driver raises is the reader's to know
            with self._news:
                self._failure = error
        finally:
            self._release()
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _release(self) -> None:
        """Let a generator run its `finally` here, in the thread that ran the rest of it."""
        if isinstance(self._frames, Generator):
            try:
                self._frames.close()
            except Exception as error:  # the frames are over either way, and whoever reads should know
                self._failure = self._failure or error

    def _put(self, image: ImageInput) -> bool:
        """Leave a frame in the mailbox; False when nobody wants any more."""
        taken_s, unix_s = time.monotonic(), time.time()
        with self._news:
            while self._wait and self._held is not None and not self._closed:
                self._news.wait()
            if self._closed:
                return False
            lost = 0 if self._held is None else self._held.dropped + 1
            self.dropped += self._held is not None
            self.frames += 1
            self._held = TakenFrame(
                image=image, number=self.frames, taken_s=taken_s, unix_s=unix_s, dropped=lost
            )
            self._news.notify_all()
            return True


def _iterate(source: Any) -> Iterator[ImageInput]:
    if isinstance(source, (str, bytes)) or not (callable(source) or isinstance(source, Iterable)):
        raise UsageError(
            "frames come from an iterable or a callable that returns the next one, got "
            f"{type(source).__name__}"
        )
    return _call(source) if callable(source) else iter(source)


def _call(read: Callable[[], ImageInput | None]) -> Iterator[ImageInput]:
    while (image := read()) is not None:
        yield image
