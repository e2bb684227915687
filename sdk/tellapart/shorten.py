"""Captions that stop earlier: what a beam would have said had it ended where it well might.

What a captioner invents mostly comes late, in one phrase too many ("... in front of a store"). A beam knows
at each step how likely the end was; where it was likely enough, what stands before is a caption, too, and
often the truer one. No step is made for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from tellapart.decode import Hypothesis, Rules

LEAST_END_LOGPROB = -4.0
"""Natural log of the least chance of the end mark, 1.8 %; below it sentences break off where nobody ends."""

LEAST_PIECES = 4
"""Of what is left."""


def shortened(found: Hypothesis, rules: Rules) -> Iterator[Hypothesis]:
    """The beginnings of a caption that are captions themselves, shortest first.

    Args:
        found: by a beam search; of others nothing comes.
        rules: of that search.
    """
    for place in range(max(LEAST_PIECES, rules.min_new_tokens), len(found.end_logprobs)):
        end = found.end_logprobs[place]
        if end > LEAST_END_LOGPROB:
            logprobs = (*found.logprobs[:place], end)
            score = sum(logprobs) / len(logprobs) ** rules.length_penalty
            yield Hypothesis(found.ids[:place], logprobs, True, score)
