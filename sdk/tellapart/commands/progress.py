"""How far a long command is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

__all__ = ["Progress"]

_BAR_CHARS = 24
_REDRAW_S = 0.1
_PLAIN_LINE_S = 30.0


class Progress:
    """Counts images; a context manager that leaves the terminal clean.

    On a terminal one line is drawn over and over, ten times a second at most. Elsewhere, as in a log file,
    a whole line is written every thirty seconds. One image alone shows nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        """Start the clock.

        Args:
            total: how many will be counted; `at` may correct it.
            quiet: show nothing, because the results scroll past on the same terminal.
        """
        self._total, self._done, self._failed = total, 0, 0
        self._quiet = quiet
        self.note = ""
        """What else is worth showing, at the end of the line."""
        self._terminal = sys.stderr.isatty()
        self._started_s = self._drawn_s = time.monotonic()
        self._line_open = False

    def __enter__(self) -> Progress:
        """The counter itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self.clear()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started_s

    def advance(self, *, failed: bool = False) -> None:
        """Count one image, and draw where it is time to."""
        self._failed += failed
        self.at(self._done + 1, self._total)

    def at(self, done: int, total: int) -> None:
        """Take somebody else's count, and draw where it is time to."""
        self._done, self._total = done, total
        now_s = time.monotonic()
        if (
            not self._quiet
            and total > 1
            and now_s - self._drawn_s >= (_REDRAW_S if self._terminal else _PLAIN_LINE_S)
        ):
            self._drawn_s = now_s
            self._draw()

    def clear(self) -> None:
        """Take the bar away, so that something else can be written; it comes back by itself."""
        if self._line_open:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._line_open = False

    def _draw(self) -> None:
        rate = self._done / max(self.elapsed_s, 1e-9)
        left_s = (self._total - self._done) / rate
        text = f"{self._done}/{self._total} images, {rate:.1f} a second, {_clock(left_s)} left"
        if self._failed:
            text += f", {self._failed} failed"
        if self.note:
            text += f", {self.note}"
        if self._terminal:
            filled = _BAR_CHARS * self._done // self._total
            sys.stderr.write(f"\r\x1b[K[{'#' * filled}{'.' * (_BAR_CHARS - filled)}] {text}")
            self._line_open = True
        else:
            sys.stderr.write(f"tellapart: {text}\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
