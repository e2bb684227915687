"""How many threads a graph may use, whatever the runtime."""

from __future__ import annotations

import os
from pathlib import Path

from tellapart.types import RuntimeOptions

_MOST_AUTO_THREADS = 4  # half a GFLOP of vision has no work for more


def threads_of(role: str, runtime: RuntimeOptions) -> int:
    """Threads inside one graph.

    Args:
        role: "vision", "decoder" or "text".
        runtime: what was asked for.
    """
    # Several texts at once are the engine's to spread out, see `Engine.spread`.
    shared = role == "vision" or (role == "decoder" and runtime.threads != "auto")
    return count_threads(runtime) if shared else 1


def count_threads(runtime: RuntimeOptions) -> int:
    """Threads that the options allow: what was asked for, or for "auto" the physical cores, at most four."""
    return min(physical_cores(), _MOST_AUTO_THREADS) if runtime.threads == "auto" else runtime.threads


def physical_cores() -> int:
    """Cores that this process may use, two threads of one core counted once."""
    try:
        processors = os.sched_getaffinity(0)
    except AttributeError:  # not on Linux: half of what is there is near enough
        return max(1, (os.cpu_count() or 1) // 2)
    siblings = set()
    for processor in processors:
        page = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        try:
            siblings.add(page.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError):  # a container without /sys
            siblings.add(str(processor))
    return max(1, len(siblings))
