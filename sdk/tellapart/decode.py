"""Token ids out of a step function: greedy and seeded sampling; beam search is in `beams`. No graph, no text.

A step function takes the newest token of each row and a cache that remembers the rest, and gives the
natural-log probabilities of the next token; it may do anything inside. The cache must know two things: how
many `rows` it holds, and how to `select` rows (drop, repeat, reorder). Rows that have ended are dropped at
once, so they cost nothing more.

Letters: n rows, V vocabulary, M most pieces a caption may have.

A caption is at most M pieces and then the end mark. After M pieces one more step asks whether the end mark
would come of itself; if not, the caption is handed back unfinished. Log-probabilities are the model's own,
never renormalised over the tokens that were allowed, so they compare between options.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from tellapart.errors import UsageError
from tellapart.types import FloatArray, IntArray


class Cache(Protocol):
    """What decoding asks of a cache."""

    @property
    def rows(self) -> int:
        """How many rows it holds."""

    def select(self, rows: IntArray, /) -> None:
        """Make row i continue what row `rows[i]` was."""


CacheT = TypeVar("CacheT", bound=Cache)

Step: TypeAlias = Callable[[IntArray, CacheT], FloatArray]
"""`step(ids (n,), cache) -> (n, V)` natural-log probabilities; the cache has taken the ids in."""

Guide: TypeAlias = Callable[[FloatArray, CacheT], FloatArray]
"""`guide(log-probabilities (n, V), cache) -> scores (n, V)`, once a step. What may not come is -inf in both;
a score is at most 0 and at least one of each row is finite. Without a guide the score of a token is its
log-probability; hypotheses carry the model's own log-probabilities either way."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a caption may look like, in ids."""

    start_id: int
    end_id: int

    banned_ids: tuple[int, ...] = ()
    """Never generated: padding, unknown, start."""

    max_new_tokens: int = 24
    """M, the end mark not counted."""

    min_new_tokens: int = 0
    """Pieces before the end mark is allowed."""

    no_repeat_ngram: int = 0
    """No run of this many pieces comes twice; 0 allows repeats."""

    length_penalty: float = 1.0
    """Score = summed log-probability / (pieces and end mark) to this power."""

    deadline_s: float | None = None
    """`time.monotonic()` after which no further step is begun; the first step is always made."""


@dataclass(frozen=True)
class Hypothesis:
    """One way to caption."""

    ids: tuple[int, ...]
    """Pieces, without start and end marks."""

    logprobs: tuple[float, ...]
    """One per piece, and one for the end mark where it came."""

    finished: bool
    """Whether the end mark came."""

    score: float
    """Length-normalised sum of what the search maximised, mostly the log-probabilities; higher is better."""

    end_logprobs: tuple[float, ...] = ()
    """Of a beam search, one per piece: of the end mark in its place. Empty of other searches."""


_NO_ENDS: FloatArray = np.zeros(0, np.float32)


def log_softmax(logits: FloatArray) -> FloatArray:
    """Natural-log probabilities of each row.

    Args:
        logits: (n, V) float32.

    Returns:
        (n, V) float32; NaN where a row held NaN or +infinity.
    """
    shifted: FloatArray = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def greedy(
    step: Step[CacheT], cache: CacheT, *, rules: Rules, guide: Guide[CacheT] | None = None
) -> list[Hypothesis]:
    """The likeliest next token, again and again.

    Args:
        step: gives the next log-probabilities.
        cache: one row a caption, before the first step; used up.
        rules: what a caption may look like.
        guide: what to search for in the place of log-probability.

    Returns:
        One hypothesis per row of the cache, in its order.
    """
    return _collect(_walk(step, cache, rules, _likeliest, guide), cache.rows, rules)


def is_plain(rules: Rules) -> bool:
    """Whether what may come depends on the position alone: no n-grams, no deadline."""
    return not rules.no_repeat_ngram and rules.deadline_s is None


def checked(tokens: IntArray, logits: FloatArray, rules: Rules) -> Hypothesis | None:
    """The hypothesis of one greedy search that was made elsewhere, held to what `greedy` would take.

    Args:
        tokens: (t,) int64, what was taken, t from 1 to M + 1.
        logits: (t, V) float32, what it was taken by.
        rules: for which `is_plain` holds.

    Returns:
        What `greedy` gives for the same logits, bit for bit; None where it would have taken other tokens, as
        it may where two are as likely up to rounding, or where the logits are not finite.
    """
    logprobs = log_softmax(logits)
    if not np.isfinite(logprobs[:, 0]).all():
        return None
    picked = logprobs[np.arange(len(tokens)), tokens]
    logprobs[:, list(rules.banned_ids)] = -np.inf
    logprobs[: rules.min_new_tokens, rules.end_id] = -np.inf
    if not np.array_equal(logprobs.argmax(axis=1), tokens):
        return None
    if len(tokens) > rules.max_new_tokens and tokens[-1] != rules.end_id:
        tokens, picked = tokens[:-1], picked[:-1]  # the last step only asks for the end mark
    total = np.cumsum(picked, dtype=np.float64)[-1:].sum()
    return hypothesis(tokens, picked, rules, total=float(total))


def stream(
    step: Step[CacheT], cache: CacheT, *, rules: Rules, guide: Guide[CacheT] | None = None
) -> Generator[int, None, None]:
    """As `greedy` for a cache of one row, token by token; stops early when the caller does.

    Yields:
        The ids of the pieces, the end mark not.
    """
    for _, ids, _, _ in _walk(step, cache, rules, _likeliest, guide):
        if len(ids) and ids[0] != rules.end_id:  # the step after the last piece may bring no end mark
            yield int(ids[0])


def sample(
    step: Step[CacheT],
    cache: CacheT,
    *,
    rules: Rules,
    temperature: float,
    top_p: float,
    generators: Sequence[np.random.Generator],
    guide: Guide[CacheT] | None = None,
) -> list[Hypothesis]:
    """Draw each next token by its chance.

    Each row draws from its own generator, one number a step, so that a row's text depends on its seed
    alone and not on the rows beside it.

    Args:
        step: gives the next log-probabilities.
        cache: one row a caption, before the first step; used up.
        rules: what a caption may look like.
        temperature: above 0; below 1 sharpens, above 1 flattens.
        top_p: only the smallest set of tokens whose chances reach this sum is drawn from, in (0, 1].
        generators: one per row of the cache.
        guide: whose scores are drawn by, in the place of log-probability.

    Returns:
        One hypothesis per row of the cache, in its order.

    Raises:
        UsageError: another number of generators than rows, a temperature or `top_p` out of range.
    """
    if len(generators) != cache.rows:
        raise UsageError(f"sampling {cache.rows} rows needs as many generators, got {len(generators)}")
    if not temperature > 0 or not 0 < top_p <= 1:
        raise UsageError(f"expected temperature above 0 and top_p in (0, 1], got {temperature} and {top_p}")

    def draw(logprobs: FloatArray, live: IntArray) -> IntArray:
        drawn = [
            _draw(row, temperature, top_p, generators[index])
            for row, index in zip(logprobs, live, strict=True)
        ]
        return np.array(drawn, np.int64)

    return _collect(_walk(step, cache, rules, draw, guide), cache.rows, rules)


def _likeliest(logprobs: FloatArray, live: IntArray) -> IntArray:
    ids: IntArray = logprobs.argmax(axis=1)
    return ids


def _draw(logprobs: FloatArray, temperature: float, top_p: float, generator: np.random.Generator) -> int:
    """One token of one row, (V,) log-probabilities with -inf where a token is not allowed."""
    wide = logprobs.astype(np.float64)
    chances = np.exp((wide - wide.max()) / temperature)
    # Stable, so that equal chances keep the order of their ids on every machine.
    order = np.argsort(-chances, kind="stable")
    reached = np.cumsum(chances[order])
    reached /= reached[-1]
    kept = int(np.searchsorted(reached, top_p, side="left")) + 1  # the token that reaches top_p is in
    last = reached[min(kept, len(reached)) - 1]
    place = int(np.searchsorted(reached, generator.random() * last, side="right"))
    return int(order[min(place, kept - 1, len(order) - 1)])


Choose: TypeAlias = Callable[[FloatArray, IntArray], IntArray]
"""`choose(scores (m, V), rows (m,)) -> ids (m,)` for the rows that are still going."""

_Pick: TypeAlias = tuple[IntArray, IntArray, FloatArray, FloatArray]
"""One step: rows, ids, log-probabilities and scores of what was chosen, each (m,)."""


def _walk(
    step: Step[CacheT], cache: CacheT, rules: Rules, choose: Choose, guide: Guide[CacheT] | None
) -> Iterator[_Pick]:
    """Steps until every row has ended."""
    live: IntArray = np.arange(cache.rows)
    ids: IntArray = np.full(cache.rows, rules.start_id)
    tokens: IntArray = np.zeros((cache.rows, rules.max_new_tokens), np.int64)
    for position in range(rules.max_new_tokens + 1):
        if not len(live) or (position and is_over(rules)):
            return
        logprobs = step(ids, cache)
        allowed = allow(logprobs, tokens[live, :position], rules)
        steered = allowed if guide is None else guide(allowed, cache)
        ids = choose(steered, live)
        places = np.arange(len(live))
        picked, scores = logprobs[places, ids], steered[places, ids]
        going = ids != rules.end_id
        if position == rules.max_new_tokens:
            yield live[~going], ids[~going], picked[~going], scores[~going]
            return
        yield live, ids, picked, scores
        tokens[live, position] = ids
        if not going.all():
            cache.select(np.flatnonzero(going))
            live, ids = live[going], ids[going]


def _collect(steps: Iterator[_Pick], rows: int, rules: Rules) -> list[Hypothesis]:
    width = rules.max_new_tokens + 1
    tokens: IntArray = np.zeros((rows, width), np.int64)
    logprobs: FloatArray = np.zeros((rows, width), np.float32)
    totals = np.zeros(rows)
    lengths: IntArray = np.zeros(rows, np.int64)
    for live, ids, picked, scores in steps:
        tokens[live, lengths[live]], logprobs[live, lengths[live]] = ids, picked
        totals[live] += scores
        lengths[live] += 1
    return [
        hypothesis(tokens[row, :length], logprobs[row, :length], rules, total=float(totals[row]))
        for row, length in enumerate(lengths)
    ]


def hypothesis(
    tokens: IntArray, logprobs: FloatArray, rules: Rules, *, total: float, ends: FloatArray = _NO_ENDS
) -> Hypothesis:
    """One row's hypothesis.

    Args:
        tokens: (t,) int64, its pieces, and its end mark where it came.
        logprobs: (t,) float32, one each.
        rules: how length counts.
        total: what the search maximised, summed.
        ends: log-probabilities of the end mark in the place of each piece, where they are known.
    """
    finished = len(tokens) > 0 and bool(tokens[-1] == rules.end_id)
    ids = tokens[:-1] if finished else tokens
    score = total / max(len(logprobs), 1) ** rules.length_penalty
    return Hypothesis(tuple(ids.tolist()), tuple(logprobs.tolist()), finished, score, tuple(ends.tolist()))


def is_over(rules: Rules) -> bool:
    """Whether the deadline has passed."""
    return rules.deadline_s is not None and time.monotonic() >= rules.deadline_s


def allow(logprobs: FloatArray, tokens: IntArray, rules: Rules) -> FloatArray:
    """What may come next.

    Args:
        logprobs: (n, V) float32.
        tokens: (n, t) int64, the pieces so far.
        rules: what a caption may look like.

    Returns:
        (n, V) float32, a copy with -inf for what may not come; at least one token a row may.
    """
    allowed = logprobs.copy()
    for banned in rules.banned_ids:  # a column each: quicker than one list of them
        allowed[:, banned] = -np.inf
    length = tokens.shape[1]
    if length < rules.min_new_tokens:
        allowed[:, rules.end_id] = -np.inf
    size = rules.no_repeat_ngram
    if 0 < size <= length:
        # (n, t - size + 1, size): every run so far; those that begin as the newest one would are closed.
        runs = np.lib.stride_tricks.sliding_window_view(tokens, size, axis=1)
        same = (runs[:, :, :-1] == tokens[:, None, length - size + 1 :]).all(axis=2)
        row, place = np.nonzero(same)
        allowed[row, runs[row, place, -1]] = -np.inf
    # Where nothing is left, the end mark is: a caption too short or said twice beats none at all.
    stuck = np.isneginf(allowed.max(axis=1))
    if stuck.any():
        allowed[stuck, rules.end_id] = logprobs[stuck, rules.end_id]
    return allowed
