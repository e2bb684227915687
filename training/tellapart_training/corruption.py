"""Captions broken on purpose, for a judge to learn from: the five ways of Cho et al. 2022 (method 9.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

KINDS = ("repeat", "remove", "insert", "swap", "shuffle")


def corrupt(words: Sequence[str], vocabulary: Sequence[str], generator: torch.Generator) -> list[str]:
    """Break a caption in one of five ways, drawn at random.

    A 1- to 3-gram is repeated one to three times, or removed; one to three random words are put in; one to
    three pairs of words change places; or all words are shuffled.

    Args:
        words: of the caption, two or more.
        vocabulary: words to put in.
        generator: of every draw.

    Returns:
        Words that differ from the caption's. A draw that changed nothing, such as the swap of two equal
        words, is made again; where that keeps failing, the last word is repeated.
    """
    for _ in range(8):
        kind = KINDS[_draw(len(KINDS), generator)]
        broken = corrupt_by(kind, words, vocabulary, generator)
        if broken and broken != list(words):
            return broken
    return [*words, words[-1]]


def corrupt_by(
    kind: str, words: Sequence[str], vocabulary: Sequence[str], generator: torch.Generator
) -> list[str]:
    """Break a caption in a given way; see `corrupt`. The result may equal the caption, or be empty."""
    broken = list(words)
    if kind in ("repeat", "remove"):
        size = min(1 + _draw(3, generator), len(words))
        start = _draw(len(words) - size + 1, generator)
        times = 2 + _draw(3, generator) if kind == "repeat" else 0
        return broken[:start] + broken[start : start + size] * times + broken[start + size :]
    if kind == "insert":
        for _ in range(1 + _draw(3, generator)):
            broken.insert(_draw(len(broken) + 1, generator), vocabulary[_draw(len(vocabulary), generator)])
        return broken
    if kind == "swap":
        for _ in range(1 + _draw(3, generator)):
            one, other = _draw(len(words), generator), _draw(len(words), generator)
            broken[one], broken[other] = broken[other], broken[one]
        return broken
    return [broken[place] for place in torch.randperm(len(words), generator=generator).tolist()]


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))
