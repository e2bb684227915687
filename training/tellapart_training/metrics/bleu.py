"""Corpus BLEU-4 (Papineni et al. 2002) with the closest reference length, as pycocoevalcap computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tellapart_training.metrics.cider import Ngram, ngram_counts

_ORDERS = 4
# pycocoevalcap adds these to every precision, so that an order without a match gives a tiny number, not 0.
_SMALL, _TINY = 1e-9, 1e-15


def corpus_bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """BLEU-1 to BLEU-4 over a corpus.

    Args:
        candidates: words of one caption for each image.
        references: for each image its references as words.

    Returns:
        Four scores in [0, 1].
    """
    matches, guesses = [0] * _ORDERS, [0] * _ORDERS
    ours = theirs = 0
    for words, texts in zip(candidates, references, strict=True):
        most: Counter[Ngram] = Counter()
        for text in texts:
            most |= ngram_counts(text)
        for ngram, count in ngram_counts(words).items():
            matches[len(ngram) - 1] += min(count, most[ngram])
        for order in range(_ORDERS):
            guesses[order] += max(0, len(words) - order)
        ours += len(words)
        theirs += min((abs(len(text) - len(words)), len(text)) for text in texts)[1]
    ratio = (ours + _TINY) / (theirs + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for order in range(_ORDERS):
        product *= (matches[order] + _TINY) / (guesses[order] + _SMALL)
        scores.append(product ** (1 / (order + 1)) * penalty)
    return scores
