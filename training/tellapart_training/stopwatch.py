"""Where the time of a step goes: seconds by activity between two lines of a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Sums seconds by name; what no name covers is `other`.

    On an accelerator an activity counts as far as the host waits for it.
    """

    def __init__(self, *names: str) -> None:
        """Start at zero.

        Args:
            names: activities that are always reported.
        """
        self._names = names
        self._restart()

    def _restart(self) -> None:
        self._seconds = dict.fromkeys(self._names, 0.0)
        self._steps = 0
        self._started_s = time.perf_counter()

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the block's seconds under a name."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started_s

    def step_done(self) -> None:
        """Count a step."""
        self._steps += 1

    def lap(self) -> dict[str, float]:
        """Figures since the last lap: `steps_per_s`, and `time_<name>` as shares that sum to 1."""
        whole = max(time.perf_counter() - self._started_s, 1e-9)
        figures = {"steps_per_s": round(self._steps / whole, 3)}
        figures |= {f"time_{name}": round(seconds / whole, 4) for name, seconds in self._seconds.items()}
        figures["time_other"] = round(max(0.0, 1 - sum(self._seconds.values()) / whole), 4)
        self._restart()
        return figures
