"""Beam search over a step function: several beginnings of each image's caption side by side.

Without a guide a beginning's score is its log-probability. A guide puts other scores in the place of the
log-probabilities, step by step, and the hypotheses still carry the model's own: see `contrast`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tellapart.decode import CacheT, Guide, Hypothesis, Rules, Step, allow, hypothesis, is_over
from tellapart.errors import UsageError
from tellapart.types import FloatArray, IntArray

_GROUP = 64
"""Tokens that are looked at together, see `best_continuations`."""


class _Beams:
    """The live beams of one image and the hypotheses that have ended.

    Attributes:
        totals: (m,) float64, summed score per live beam, best first.
        tokens: (m, t) int64, the pieces of each.
        logprobs: (m, t) float32, one per piece.
        ends: (m, t) float32, of the end mark in the place of each.
        ended: finished hypotheses, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.totals = np.zeros(1)
        self.tokens: IntArray = np.zeros((1, 0), np.int64)
        self.logprobs: FloatArray = np.zeros((1, 0), np.float32)
        self.ends: FloatArray = np.zeros((1, 0), np.float32)
        self.ended: list[Hypothesis] = []

    def advance(
        self, logprobs: FloatArray, steered: FloatArray, rules: Rules, *, beams: int, last: bool
    ) -> IntArray:
        """Take the best continuations by (m, V) scores; returns which beam each new one continues, (m',)."""
        size = steered.shape[1]
        parents: list[int] = []
        pieces: list[int] = []
        done: list[int] = []
        # Twice the width: even if every beam could end here, as many go on.
        flats, found = best_continuations(self.totals, steered, 2 * beams)
        taken: list[float] = []
        for place, (flat, total) in enumerate(zip(flats, found, strict=True)):
            parent, token = divmod(flat, size)
            if token != rules.end_id:
                if not last and len(parents) < beams:
                    parents.append(parent)
                    pieces.append(token)
                    taken.append(total)
            # An end mark that is not among the best now would only be a caption broken off.
            elif place < beams:
                tokens = np.append(self.tokens[parent], token)
                path = np.append(self.logprobs[parent], logprobs[parent, token])
                self.ended.append(hypothesis(tokens, path, rules, total=total, ends=self.ends[parent]))
                done.append(parent)
        if last:  # those that go nowhere any more stay as they are, for want of better
            self._keep([beam for beam in range(len(self.totals)) if beam not in done])
        else:
            self.totals = np.array(taken)
            self.tokens = np.column_stack([self.tokens[parents], np.array(pieces, np.int64)])
            self.logprobs = np.column_stack([self.logprobs[parents], logprobs[parents, pieces]])
            self.ends = np.column_stack([self.ends[parents], logprobs[parents, rules.end_id]])
        return np.array(parents, np.int64)

    def _keep(self, beams: list[int]) -> None:
        self.totals, self.tokens = self.totals[beams], self.tokens[beams]
        self.logprobs, self.ends = self.logprobs[beams], self.ends[beams]

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
            live = [
                hypothesis(tokens, path, rules, total=float(total), ends=ends)
                for tokens, path, total, ends in zip(
                    self.tokens, self.logprobs, self.totals, self.ends, strict=True
                )
            ]
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
    guide: Guide[CacheT] | None = None,
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
        guide: what to search for in the place of log-probability.

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
        if not live or (position and is_over(rules)):
            break
        logprobs = step(ids, cache)
        counts = np.cumsum([len(image.totals) for image in live])[:-1]
        allowed = [
            allow(rows, image.tokens, rules)
            for rows, image in zip(np.split(logprobs, counts), live, strict=True)
        ]
        if guide is not None:
            allowed = np.split(guide(np.concatenate(allowed), cache), counts)
        last = position == rules.max_new_tokens
        going: list[_Beams] = []
        kept: list[IntArray] = []
        first = 0
        for image, steered in zip(live, allowed, strict=True):
            count = len(image.totals)
            own = logprobs[first : first + count]
            parents = image.advance(own, steered, rules, beams=beams, last=last)
            if not last and not image.is_settled(rules, beams=beams, n_best=n_best, stop=stop):
                going.append(image)
                kept.append(first + parents)
            first += count
        live = going
        if live:
            cache.select(np.concatenate(kept))
            ids = np.concatenate([image.tokens[:, -1] for image in live])
    return [image.results(rules, n_best=n_best) for image in images]


def best_continuations(
    totals: npt.NDArray[np.float64], steered: FloatArray, count: int
) -> tuple[list[int], list[float]]:
    """The best continuations of some beams, found without sorting the whole vocabulary.

    Tokens are looked at in groups of 64. The `count` best groups, by the best token of each, hold the `count`
    best tokens, and only these few groups are added up and sorted.

    Args:
        totals: (m,) float64, score per beam so far.
        steered: (m, V) float32, what each token would add; -inf for what may not come.
        count: most continuations wanted.

    Returns:
        Places in the ravelled (m, V), and their scores totals + steered, best first, the first place first
        among equals; what is -inf is left out.
    """
    size = steered.shape[1]
    groups = max(size // _GROUP, 1)
    whole = size - size % groups
    # Group g is g, g + groups, g + 2 groups ...: the maximum then runs along memory.
    tops = steered[:, :whole].reshape(len(totals), -1, groups).max(axis=1)
    if whole < size:
        tops[:, : size - whole] = np.maximum(tops[:, : size - whole], steered[:, whole:])
    best = (totals[:, None] + tops).ravel()
    bar = -np.inf
    if count < len(best):
        bar = np.partition(best, len(best) - count)[len(best) - count]
    beams, group = np.divmod(np.flatnonzero(best >= bar), groups)
    tokens = group[:, None] + np.arange(0, size, groups)
    beams = np.broadcast_to(beams[:, None], tokens.shape)[tokens < size]
    tokens = tokens[tokens < size]
    scores = totals[beams] + steered[beams, tokens]
    kept = np.flatnonzero((scores >= bar) & ~np.isneginf(scores))
    places, scores = (beams * size + tokens)[kept], scores[kept]
    order = np.lexsort((places, -scores))[:count]
    return places[order].tolist(), scores[order].tolist()


def _by_score(found: Hypothesis) -> float:
    return -found.score
