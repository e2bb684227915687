"""One worker for many threads: whoever finds it free does everybody's waiting work in one batch.

For things that are fast in batches and not safe from many threads: the parser, a language model on this
machine.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tellapart_training.boost.parsing import Parser, Sentence

Given = TypeVar("Given")
Made = TypeVar("Made")


class Gather(Generic[Given, Made]):
    """A function of a batch, called with few items by many threads.

    Args:
        work: makes one result for each item, in order.
        most: items in one batch, more only where a single call brings more.
    """

    def __init__(self, work: Callable[[list[Given]], Sequence[Made]], *, most: int) -> None:
        self._work, self._most = work, most
        self._waiting: deque[_Ticket[Given, Made]] = deque()
        self._turn = threading.Lock()

    def __call__(self, items: Sequence[Given]) -> list[Made]:
        """Results for some items; an error of the batch is everybody's in it."""
        ticket: _Ticket[Given, Made] = _Ticket(list(items))
        self._waiting.append(ticket)
        with self._turn:
            while not ticket.done:
                self._do_batch()
        if ticket.error is not None:
            raise ticket.error
        return ticket.made

    def _do_batch(self) -> None:
        batch = [self._waiting.popleft()]
        count = len(batch[0].items)
        while self._waiting and count + len(self._waiting[0].items) <= self._most:
            batch.append(self._waiting.popleft())
            count += len(batch[-1].items)
        try:
            made = iter(self._work([item for ticket in batch for item in ticket.items]))
            for ticket in batch:
                ticket.made = [next(made) for _ in ticket.items]
        except Exception as error:
            for ticket in batch:
                ticket.error = error
        finally:
            for ticket in batch:
                ticket.done = True


class _Ticket(Generic[Given, Made]):
    def __init__(self, items: list[Given]) -> None:
        self.items = items
        self.made: list[Made] = []
        self.error: Exception | None = None
        self.done = False


class GatheredParser:
    """A parser that many threads may call."""

    def __init__(self, parser: Parser) -> None:
        self.name = parser.name
        self._gather: Gather[str, Sentence] = Gather(parser.parse, most=256)

    def parse(self, texts: Sequence[str]) -> list[Sentence]:
        """One sentence for each text, in order."""
        return self._gather(texts)
