"""Many things done at once and handed over in order, with a bounded number under way.

Threads, not processes: decoding a photo, resizing it, numpy and the runtime all let go of Python's lock, the
graphs are shared, and one process holds the memory of one. A worker takes an image all the way from its
file to its caption, so no stage waits for another and no queue between stages can fill up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")

_AHEAD = 2
"""Items under way or waiting per worker: none is idle, and memory stays flat however many there are."""


def in_order(
    work: Callable[[ItemT], FoundT], items: Iterator[ItemT], *, workers: int
) -> Generator[FoundT, None, None]:
    """Results in the order of the items; closing it drops what was not begun and waits for what was.

    Args:
        work: called in several threads at once; what it raises comes out in its turn, and ends the rest.
        items: taken in the thread that iterates, at most 2 x `workers` ahead of what was yielded.
        workers: threads.

    Yields:
        One result an item.
    """
    if workers == 1:  # no thread is needed to do one thing after the other
        yield from map(work, items)
        return
    waiting: deque[Future[FoundT]] = deque()
    pool = ThreadPoolExecutor(workers, "tellapart-bulk")
    try:
        while True:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= _AHEAD * workers:
                    break
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
