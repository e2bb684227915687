"""One request, asked until it is answered: journalled, paced, paid for, and tried again when it fails."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tellapart.errors import BackendError
from tellapart_training.boost.chat import Answer, Chat, Decoding, Fault, Message, estimate_tokens
from tellapart_training.boost.journal import Journal
from tellapart_training.boost.spending import Budget, RateLimit, backoff_s

_PATIENCE = 20


class NoAnswerError(Exception):
    """A request that was given up; `kind` says why. Never leaves this room."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class StoppedError(Exception):
    """The run ends; never leaves this room."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How requests are paced and tried again.

    Attributes:
        requests: of requests a minute.
        tokens: of tokens a minute.
        retries: further tries of a request that failed.
        backoff_base_s: longest wait after the first failure; it doubles with each.
        backoff_cap_s: longest wait at all.
    """

    requests: RateLimit
    tokens: RateLimit
    retries: int = 6
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 60.0


class Asker:
    """Asks a model, through a journal and within a budget; safe from many threads.

    Args:
        chat: who answers.
        journal: what was answered before.
        budget: what may be spent.
        pace: how fast.
        stop: set when the run ends.
        counts: of this run: "requests", "answers", "from journal", "given up".
        seed: of the jitter of waits.
    """

    def __init__(
        self,
        chat: Chat,
        journal: Journal,
        budget: Budget,
        *,
        pace: Pace,
        stop: threading.Event,
        counts: Counter[str],
        seed: int = 0,
    ) -> None:
        self.journal, self.budget, self.counts = journal, budget, counts
        self._chat, self._pace, self._stop = chat, pace, stop
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._in_vain = 0

    def ask(self, image: str, messages: Sequence[Message], decoding: Decoding) -> Answer:
        """The answer to some messages about an image.

        Raises:
            NoAnswerError: every try failed, or the endpoint refuses this request.
            BudgetError: it would cost more than is left.
            BackendError: the model refuses everything, or twenty requests on end were given up.
            StoppedError: the run ends.
        """
        key = self.key(image, messages, decoding)
        known = self.journal.find(key)
        if known is not None:
            self._count("from journal")
            return known
        most = (estimate_tokens(messages), decoding.max_tokens)
        fault = Fault("not asked")
        for turn in range(1, self._pace.retries + 2):
            try:
                answer = self._try(key, messages, decoding, most)
            except Fault as failed:
                fault = failed
            else:
                self._in_vain = 0
                return answer
            if not fault.again or turn > self._pace.retries:
                break
            if fault.wait_s:
                self._pace.requests.hold(fault.wait_s)
            self._wait(self._backoff_s(turn))
        self._give_up(fault)
        raise NoAnswerError(fault.kind)

    def key(self, image: str, messages: Sequence[Message], decoding: Decoding) -> str:
        """By what the journal knows a request: model, image, words and decoding."""
        whole = json.dumps([self._chat.name, image, list(messages), asdict(decoding)], sort_keys=True)
        return hashlib.sha256(whole.encode("ascii")).hexdigest()[:32]

    def _try(
        self, key: str, messages: Sequence[Message], decoding: Decoding, most: tuple[int, int]
    ) -> Answer:
        self.budget.promise(*most)
        spent = (0, 0)
        try:
            self._wait(max(self._pace.requests.turn_s(), self._pace.tokens.turn_s(sum(most))))
            self.journal.send(key, most)
            self._count("requests")
            try:
                answer = self._chat.complete(messages, decoding)
            except Fault as fault:
                spent = most if fault.paid else spent
                self.journal.fault(key, fault.kind, spent)
                raise
            except BackendError:
                self.journal.fault(key, "refused for good", spent)
                raise
            spent = (answer.input_tokens, answer.output_tokens)
            self.journal.answer(key, answer)
            self._count("answers")
            return answer
        finally:
            self.budget.settle(most, spent)

    def _give_up(self, fault: Fault) -> None:
        self._count("given up")
        self._in_vain += 1
        if self._in_vain >= _PATIENCE:
            raise BackendError(
                f"the model left {_PATIENCE} requests on end without an answer (the last: "
                f"{fault.kind}). Nothing "
                f"is lost: see to it, then run the same command again"
            )

    def _backoff_s(self, turn: int) -> float:
        with self._lock:
            return backoff_s(
                turn,
                base_s=self._pace.backoff_base_s,
                cap_s=self._pace.backoff_cap_s,
                generator=self._random,
            )

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise StoppedError

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1
