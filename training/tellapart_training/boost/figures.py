"""Figures of a run: captions before and after, support, drops by rule, near-duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tellapart_training.boost.checks import exact_words
from tellapart_training.boost.facts import content_words, modifiers, nouns
from tellapart_training.boost.parsing import Sentence
from tellapart_training.metrics.words import metric_words

_NEAR = 0.8


@dataclass
class Texts:
    """Sums over a set of captions."""

    captions: int = 0
    words: int = 0
    content: int = 0
    attributes: int = 0
    vocabulary: set[str] = field(default_factory=set)

    def add(self, sentence: Sentence) -> None:
        """Count a caption."""
        words = metric_words(sentence.text)
        self.captions += 1
        self.words += len(words)
        self.content += len(content_words(sentence))
        self.attributes += sum(len(modifiers(sentence, noun)) for noun in nouns(sentence))
        self.vocabulary.update(words)

    def figures(self) -> dict[str, float]:
        """Means over captions, and the size of the vocabulary."""
        count = max(1, self.captions)
        return {
            "captions": self.captions,
            "words": round(self.words / count, 3),
            "content_words": round(self.content / count, 3),
            "attributes": round(self.attributes / count, 3),
            "vocabulary": len(self.vocabulary),
        }


@dataclass
class Tally:
    """Everything a run counts, for its report."""

    human: Texts = field(default_factory=Texts)
    boosted: Texts = field(default_factory=Texts)
    supported: int = 0
    counted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    generators: Counter[str] = field(default_factory=Counter)
    grafts: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    """What experts added, by expert."""
    images: int = 0
    written: int = 0
    texts: list[str] = field(default_factory=list)
    similarities: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    """Cosines with the photo: mean of the human captions of an image, mean of its boosted ones."""

    def add_boosted(self, sentence: Sentence, humans: Sequence[Sentence]) -> None:
        """Count a boosted caption, and its words that a human caption of its image has."""
        stated = {word for human in humans for word in exact_words(human.text)}
        words = exact_words(sentence.text)
        self.supported += sum(word in stated for word in words)
        self.counted += len(words)
        self.boosted.add(sentence)
        self.texts.append(sentence.text)

    def report(self) -> dict[str, Any]:
        """The report as JSON has it; shares in [0, 1]."""
        before, after = self.human.figures(), self.boosted.figures()
        return {
            "images": self.images,
            "written": self.written,
            "human": before,
            "boosted": after,
            "content_gain": round(after["content_words"] / max(1e-9, before["content_words"]) - 1.0, 4),
            "word_support": round(self.supported / max(1, self.counted), 6),
            "grafts": self.grafts,
            **({"added_by_experts": dict(sorted(self.seen.items()))} if self.seen else {}),
            **self._similarity(),
            "near_duplicates": round(near_duplicate_share(self.texts), 4),
            "generators": dict(sorted(self.generators.items())),
            "rejected": dict(sorted(self.rejected.items())),
            "captions_refused": dict(sorted(self.refused.items())),
            "images_dropped": dict(sorted(self.dropped.items())),
        }

    def _similarity(self) -> dict[str, Any]:
        human, boosted = self.similarities
        if not human:
            return {}
        means = [round(sum(values) / len(values), 4) for values in (human, boosted)]
        return {"similarity": {"human": means[0], "boosted": means[1]}}


def near_duplicate_share(texts: Sequence[str]) -> float:
    """The share of captions that have another one nearly the same: Jaccard of their word sets from 0.8.

    Only captions that share one of their rarest words are compared (one more than may differ), for two that
    are this close share at least one of those.
    """
    sets = [frozenset(metric_words(text)) for text in texts]
    counts = Counter(word for words in sets for word in words)
    by_word: dict[str, list[int]] = {}
    for index, words in enumerate(sets):
        for word in _rarest(words, counts):
            by_word.setdefault(word, []).append(index)
    near = [False] * len(sets)
    for one, other in _pairs(by_word):
        if not (near[one] and near[other]):
            both = len(sets[one] & sets[other])
            if both >= _NEAR * (len(sets[one]) + len(sets[other]) - both):
                near[one] = near[other] = True
    return sum(near) / max(1, len(near))


def _rarest(words: frozenset[str], counts: Counter[str]) -> list[str]:
    # With n words and Jaccard from 0.8 at most a fifth of the words may differ: one more than that is enough.
    return sorted(words, key=lambda word: (counts[word], word))[: len(words) // 5 + 1]


def _pairs(by_word: dict[str, list[int]]) -> Iterator[tuple[int, int]]:
    for places in by_word.values():
        for first, one in enumerate(places):
            for other in places[first + 1 :]:
                yield one, other
