"""Habits of a set of captions: length, vocabulary, repetition, sameness, captions without an end.

They are watched because a reward can be raised by habits that no reader wants: longer captions, the same noun
twice, or one template for everything.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

Words = Sequence[str]

# What a good sentence may need twice: articles, prepositions, pronouns, forms of be and have, numbers.
_FUNCTION_WORDS = """
a an the this that these those there here and or but while as of in on at with by for from to into onto out
off up down over under through across along around behind beside between near next front back against above
below toward towards is are be being been was were has have having his her their its it he she they him them
who which another other others each some many several one two three four five very not no 's 're 've n't
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def repeats_itself(words: Words) -> bool:
    """Whether a content word, or two words in a row of any kind, occur twice in a caption."""
    counts = Counter(word for word in words if word not in FUNCTION_WORDS)
    pairs = Counter(itertools.pairwise(words))
    return max(counts.values(), default=0) > 1 or max(pairs.values(), default=0) > 1


def distinct_in_bags(captions: Sequence[Words], bags: Sequence[Sequence[int]]) -> float:
    """Different captions in a bag as a share of its size, mean over bags; 1 is no two alike.

    Args:
        captions: words of each image's caption.
        bags: rows of the images of each bag; at least one bag.
    """
    shares = [len({tuple(captions[row]) for row in bag}) / len(bag) for bag in bags]
    return sum(shares) / len(shares)


def habits(
    captions: Sequence[Words],
    *,
    cut: Sequence[bool] | None = None,
    bags: Mapping[int, Sequence[Sequence[int]]] | None = None,
) -> dict[str, float]:
    """How a set of captions is written.

    Args:
        captions: words of each caption, as `metric_words` makes them; at least one caption.
        cut: for each caption whether it ran into the longest length without coming to its end; None where
            nobody knows, and the figure is then left out.
        bags: rows of look-alike images by bag size; None leaves the figure out.

    Returns:
        `mean_words`, `vocabulary_used` (different words), `distinct_captions` (captions that no earlier image
        has, as a share), `repeated_words` (share of captions that repeat a content word or a pair of words),
        `cut` (share), and `distinct_in_bags` (mean over all bags, whatever their size).
    """
    count = len(captions)
    figures = {
        "mean_words": sum(map(len, captions)) / count,
        "vocabulary_used": float(len({word for words in captions for word in words})),
        "distinct_captions": len({" ".join(words) for words in captions}) / count,
        "repeated_words": sum(map(repeats_itself, captions)) / count,
    }
    if cut is not None:
        figures["cut"] = sum(map(bool, cut)) / count
    if bags:
        figures["distinct_in_bags"] = distinct_in_bags(
            captions, [bag for size in bags.values() for bag in size]
        )
    return figures
