"""What a run may spend and how fast: a budget in tokens and money, a rate limit, and waits between tries."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tellapart.errors import BudgetError


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens, in whatever currency the limit is in."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Of one request."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


class Budget:
    """Tokens and money spent and promised; safe from many threads.

    A request is counted in full before it is sent, at its longest possible answer, so many at once cannot
    overrun the limit together.

    Args:
        tokens: most tokens, 0 for no limit.
        money: most money, 0 for no limit.
        prices: of a million tokens.
    """

    def __init__(self, tokens: int, money: float, prices: Prices) -> None:
        self.limit_tokens, self.limit_money, self.prices = tokens, money, prices
        self.tokens, self.money = 0, 0.0
        self._promises, self._promised_tokens, self._promised_money = 0, 0, 0.0
        self._changed = threading.Condition()

    def promise(self, input_tokens: int, output_tokens: int) -> None:
        """Set aside what a request can cost at most; waits while other promises alone stand in the way.

        Raises:
            BudgetError: it would be over a limit.
        """
        tokens, money = input_tokens + output_tokens, self.prices.cost(input_tokens, output_tokens)
        with self._changed:
            while self._over(self._promised_tokens + tokens, self._promised_money + money):
                if self._promises == 0 or self._over(tokens, money):
                    raise BudgetError(
                        f"the budget is used up: {self.tokens} tokens, {self.money:.4f} of money "
                        f"spent. Nothing "
                        f"is lost: raise --budget-tokens or --budget-money and run the same command again"
                    )
                self._changed.wait()
            self._promises += 1
            self._promised_tokens += tokens
            self._promised_money += money

    def _over(self, tokens: int, money: float) -> bool:
        return (self.tokens + tokens > self.limit_tokens > 0) or (self.money + money > self.limit_money > 0)

    def settle(self, promised: tuple[int, int], spent: tuple[int, int]) -> None:
        """Replace a promise by what was spent, each as (input tokens, output tokens)."""
        with self._changed:
            self._promises -= 1
            self._promised_tokens -= sum(promised)
            self._promised_money -= self.prices.cost(*promised)
            self._spend(spent)
            self._changed.notify_all()

    def spend(self, spent: tuple[int, int]) -> None:
        """Count what an earlier run spent."""
        with self._changed:
            self._spend(spent)

    def _spend(self, spent: tuple[int, int]) -> None:
        self.tokens += sum(spent)
        self.money += self.prices.cost(*spent)


class RateLimit:
    """At most so many requests, or tokens, a minute, evenly spread; safe from many threads.

    Args:
        per_minute: 0 is no limit.
        clock: seconds that only grow.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap_s = 60.0 / per_minute if per_minute > 0 else 0.0
        self._clock, self._next_s = clock, 0.0
        self._lock = threading.Lock()

    def turn_s(self, weight: float = 1.0) -> float:
        """Take the next turn, `weight` turns long; how many seconds to wait for it."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next_s)
            self._next_s = start + self._gap_s * weight
            return start - now

    def hold(self, seconds: float) -> None:
        """Let nobody go for a while, because the endpoint asked for it."""
        with self._lock:
            self._next_s = max(self._next_s, self._clock() + seconds)


def backoff_s(turn: int, *, base_s: float, cap_s: float, generator: random.Random) -> float:
    """Seconds before another try: anywhere up to a bound that doubles with every try ("full jitter").

    Args:
        turn: tries that failed so far, from 1.
        base_s: bound after the first.
        cap_s: largest bound.
        generator: of the jitter.
    """
    return generator.uniform(0.0, min(cap_s, base_s * 2.0 ** (turn - 1)))
