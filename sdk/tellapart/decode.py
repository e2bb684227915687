"""Token ids out of a step function: greedy, seeded sampling, beam search. Numbers only, no graph, no text.

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
from typing import Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

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
    """Length-normalised log-probability; higher is better."""


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


def greedy(step: Step[CacheT], cache: CacheT, *, rules: Rules) -> list[Hypothesis]:
    """The likeliest next token, again and again.

    Args:
        step: gives the next log-probabilities.
        cache: one row a caption, before the first step; used up.
        rules: what a caption may look like.

    Returns:
        One hypothesis per row of the cache, in its order.
    """
    return _collect(_walk(step, cache, rules, _likeliest), cache.rows, rules)


def stream(step: Step[CacheT], cache: CacheT, *, rules: Rules) -> Generator[int, None, None]:
    """As `greedy` for a cache of one row, token by token; stops early when the caller does.

    Yields:
        The ids of the pieces, the end mark not.
    """
    for _, ids, _ in _walk(step, cache, rules, _likeliest):
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

    return _collect(_walk(step, cache, rules, draw), cache.rows, rules)


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
"""`choose(log-probabilities (m, V), rows (m,)) -> ids (m,)` for the rows that are still going."""


def _walk(
    step: Step[CacheT], cache: CacheT, rules: Rules, choose: Choose
) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Steps until every row has ended; yields (rows, ids, log-probabilities), each (m,), per step."""
    live: IntArray = np.arange(cache.rows)
    ids: IntArray = np.full(cache.rows, rules.start_id)
    tokens: IntArray = np.zeros((cache.rows, rules.max_new_tokens), np.int64)
    for position in range(rules.max_new_tokens + 1):
        if not len(live) or (position and _is_over(rules)):
            return
        logprobs = step(ids, cache)
        ids = choose(_allowed(logprobs, tokens[live, :position], rules), live)
        picked = logprobs[np.arange(len(live)), ids]
        going = ids != rules.end_id
        if position == rules.max_new_tokens:
            yield live[~going], ids[~going], picked[~going]
            return
        yield live, ids, picked
        tokens[live, position] = ids
        if not going.all():
            cache.select(np.flatnonzero(going))
            live, ids = live[going], ids[going]


def _collect(
    steps: Iterator[tuple[IntArray, IntArray, FloatArray]], rows: int, rules: Rules
) -> list[Hypothesis]:
    width = rules.max_new_tokens + 1
    tokens: IntArray = np.zeros((rows, width), np.int64)
    logprobs: FloatArray = np.zeros((rows, width), np.float32)
    lengths: IntArray = np.zeros(rows, np.int64)
    for live, ids, picked in steps:
        tokens[live, lengths[live]], logprobs[live, lengths[live]] = ids, picked
        lengths[live] += 1
    return [
        _hypothesis(tokens[row, :length], logprobs[row, :length], rules) for row, length in enumerate(lengths)
    ]


def _hypothesis(tokens: IntArray, logprobs: FloatArray, rules: Rules) -> Hypothesis:
    """From the tokens of one row, its end mark included where it came."""
    finished = len(tokens) > 0 and bool(tokens[-1] == rules.end_id)
    ids = tokens[:-1] if finished else tokens
    total = float(logprobs.sum(dtype=np.float64))
    score = total / max(len(logprobs), 1) ** rules.length_penalty
    return Hypothesis(tuple(ids.tolist()), tuple(logprobs.tolist()), finished, score)


def _is_over(rules: Rules) -> bool:
    return rules.deadline_s is not None and time.monotonic() >= rules.deadline_s


def _allowed(logprobs: FloatArray, tokens: IntArray, rules: Rules) -> FloatArray:
    """A copy with -inf for what may not come next, given the pieces so far, (n, t)."""
    allowed = logprobs.copy()
    allowed[:, list(rules.banned_ids)] = -np.inf
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
    allowed[stuck, rules.end_id] = logprobs[stuck, rules.end_id]
    return allowed


class _Beams:
    """The live beams of one image and the hypotheses that have ended.

    Attributes:
        totals: (m,) float64, summed log-probability per live beam, best first.
        tokens: (m, t) int64, the pieces of each.
        logprobs: (m, t) float32, one per piece.
        ended: finished hypotheses, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.totals = np.zeros(1)
        self.tokens: IntArray = np.zeros((1, 0), np.int64)
        self.logprobs: FloatArray = np.zeros((1, 0), np.float32)
        self.ended: list[Hypothesis] = []

    def advance(self, logprobs: FloatArray, rules: Rules, *, beams: int, last: bool) -> IntArray:
        """Take the best continuations; returns which beam each of the new ones continues, (m',)."""
        scores = self.totals[:, None] + _allowed(logprobs, self.tokens, rules)
        size = scores.shape[1]
        parents: list[int] = []
        pieces: list[int] = []
        done: list[int] = []
        # Twice the width: even if every beam could end here, as many go on.
        for place, flat in enumerate(_best(scores.ravel(), 2 * beams)):
            parent, token = divmod(flat, size)
            if token != rules.end_id:
                if not last and len(parents) < beams:
                    parents.append(parent)
                    pieces.append(token)
            # An end mark that is not among the best now would only be a caption broken off.
            elif place < beams:
                tokens = np.append(self.tokens[parent], token)
                path = np.append(self.logprobs[parent], logprobs[parent, token])
                self.ended.append(_hypothesis(tokens, path, rules))
                done.append(parent)
        if last:  # those that go nowhere any more stay as they are, for want of better
            self._keep([beam for beam in range(len(self.totals)) if beam not in done])
        else:
            self.totals = scores[parents, pieces]
            self.tokens = np.column_stack([self.tokens[parents], np.array(pieces, np.int64)])
            self.logprobs = np.column_stack([self.logprobs[parents], logprobs[parents, pieces]])
        return np.array(parents, np.int64)

    def _keep(self, beams: list[int]) -> None:
        self.totals, self.tokens, self.logprobs = self.totals[beams], self.tokens[beams], self.logprobs[beams]

    def is_settled(self, rules: Rules, *, beams: int, n_best: int, stop: StopRule) -> bool:
        """Whether no live beam can still come among the n best."""
        # One beam that has ended is where greedy search ends; its second choice would be a second beam.
        if not len(self.totals) or (beams == 1 and self.ended):
            return True
        if len(self.ended) < (n_best if stop == "exact" else beams):
            return False
        length = self.tokens.shape[1] + 1
        # Sums only fall, so a longer beam does best by adding nothing and dividing by the longest length.
        longest = rules.max_new_tokens + 1 if stop == "exact" else length
        reachable = float(self.totals[0]) / longest**rules.length_penalty
        worst_kept = sorted((found.score for found in self.ended), reverse=True)[n_best - 1]
        return bool(worst_kept >= reachable)

    def results(self, rules: Rules, *, n_best: int) -> list[Hypothesis]:
        """Best first; beams that never ended only fill up what is missing."""
        found = sorted(self.ended, key=_by_score)[:n_best]
        if len(found) < n_best:
            live = [_hypothesis(*row, rules) for row in zip(self.tokens, self.logprobs, strict=True)]
            found += sorted(live, key=_by_score)[: n_best - len(found)]
        return found


StopRule: TypeAlias = Literal["likely", "exact"]
"""When a beam search is over, see `beam_search`."""


def beam_search(
    step: Step[CacheT],
    cache: CacheT,
    *,
    rules: Rules,
    beams: int,
    n_best: int = 1,
    stop: StopRule = "likely",
) -> list[list[Hypothesis]]:
    """Keep the `beams` best beginnings of each image side by side; one beam is greedy search.

    Args:
        step: gives the next log-probabilities.
        cache: one row an image, before the first step; used up.
        rules: what a caption may look like; its `length_penalty` shapes the score.
        beams: live beginnings per image.
        n_best: hypotheses wanted per image, at most `beams`.
        stop: "exact" ends an image when no continuation at all could reach its n best, which for a length
            penalty above 0 is often not before the longest length. "likely" ends it when `beams`
            hypotheses are finished and no live beam's score as it stands would come among the n best:
            about half the steps, and almost always the same caption.

    Returns:
        Per image, in the order of the rows, one to `n_best` hypotheses: finished ones best first, then
        unfinished ones where a limit left too few.

    Raises:
        UsageError: `beams` below 1, or `n_best` not between 1 and `beams`.
    """
    if not 1 <= n_best <= beams:
        raise UsageError(f"expected beams of at least 1 and n_best from 1 to beams, got {beams} and {n_best}")
    images = [_Beams() for _ in range(cache.rows)]
    live = list(images)
    ids: IntArray = np.full(cache.rows, rules.start_id)
    for position in range(rules.max_new_tokens + 1):
        if not live or (position and _is_over(rules)):
            break
        logprobs = step(ids, cache)
        last = position == rules.max_new_tokens
        going: list[_Beams] = []
        rows: list[IntArray] = []
        first = 0
        for image in live:
            count = len(image.totals)
            parents = image.advance(logprobs[first : first + count], rules, beams=beams, last=last)
            if not last and not image.is_settled(rules, beams=beams, n_best=n_best, stop=stop):
                going.append(image)
                rows.append(first + parents)
            first += count
        live = going
        if live:
            cache.select(np.concatenate(rows))
            ids = np.concatenate([image.tokens[:, -1] for image in live])
    return [image.results(rules, n_best=n_best) for image in images]


def _best(scores: npt.NDArray[np.float64], count: int) -> list[int]:
    """Places of the best `count` scores that are not -inf, best first, the first place first among equals."""
    if count < len(scores):
        bar = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.flatnonzero(scores >= bar)
    else:
        places = np.arange(len(scores))
    places = places[~np.isneginf(scores[places])]
    order = np.argsort(-scores[places], kind="stable")[:count]
    found: list[int] = places[order].tolist()
    return found


def _by_score(found: Hypothesis) -> float:
    return -found.score
