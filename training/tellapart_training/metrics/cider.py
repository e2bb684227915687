"""CIDEr-D (Vedantam et al. 2015): clipped tf-idf n-gram cosine with a penalty on length, times 10.

Document frequencies are an argument, so that a score does not depend on which captions happen to be scored
together. With the references of the scored images as documents it equals pycocoevalcap's `Cider`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tellapart.errors import DataError

Ngram = tuple[str, ...]
_ORDERS = 4
_SIGMA = 6.0


def ngram_counts(words: Sequence[str]) -> Counter[Ngram]:
    """How often each 1- to 4-gram occurs."""
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, _ORDERS + 1)
        for start in range(len(words) - order + 1)
    )


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram occurs.

    Attributes:
        documents: number of images counted.
        counts: n-gram to number of images.
    """

    documents: int
    counts: Mapping[Ngram, int]

    @classmethod
    def of_references(cls, references: Sequence[Sequence[Sequence[str]]]) -> DocumentFrequencies:
        """Count over images.

        Args:
            references: for each image its references, each a list of words.
        """
        counts: Counter[Ngram] = Counter()
        for texts in references:
            counts.update({ngram for words in texts for ngram in ngram_counts(words)})
        return cls(len(references), counts)

    def save(self, path: Path) -> None:
        """Write as JSON; n-grams joined by spaces."""
        counts = {" ".join(ngram): count for ngram, count in self.counts.items()}
        path.write_text(json.dumps({"documents": self.documents, "counts": counts}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> DocumentFrequencies:
        """Read what `save` wrote.

        Raises:
            DataError: not such a file.
        """
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            counts = {tuple(key.split(" ")): int(count) for key, count in stored["counts"].items()}
            return cls(int(stored["documents"]), counts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} holds no document frequencies ({error}): write them with DocumentFrequencies.save"
            ) from error


@dataclass(frozen=True)
class _Vector:
    weights: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    length: int


def _vector(words: Sequence[str], frequencies: DocumentFrequencies) -> _Vector:
    total = math.log(frequencies.documents) if frequencies.documents > 1 else 1.0
    weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in range(_ORDERS))
    for ngram, count in ngram_counts(words).items():
        rarity = total - math.log(max(1.0, frequencies.counts.get(ngram, 0)))
        weights[len(ngram) - 1][ngram] = count * rarity
    norms = tuple(math.sqrt(sum(weight * weight for weight in each.values())) for each in weights)
    # The published code measures length in bigrams; the difference of two lengths is the same in words.
    return _Vector(weights, norms, max(0, len(words) - 1))


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    gap = candidate.length - reference.length
    penalty = math.exp(-(gap**2) / (2 * _SIGMA**2))
    total = 0.0
    for ours, theirs, norm, other in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        if norm and other:
            product = sum(
                min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, weight in ours.items()
            )
            total += product / (norm * other)
    return total * penalty / _ORDERS


class CiderD:
    """CIDEr-D against references that are weighed once, for rewards that are asked for again and again."""

    def __init__(
        self, references: Sequence[Sequence[Sequence[str]]], frequencies: DocumentFrequencies
    ) -> None:
        """Weigh the references.

        Args:
            references: for each image its references as words.
            frequencies: fixed document frequencies.
        """
        self._frequencies = frequencies
        self._references = [[_vector(text, frequencies) for text in texts] for texts in references]

    def score(self, words: Sequence[str], row: int) -> float:
        """The score of a caption of image `row`, from 0 to 10."""
        candidate, texts = _vector(words, self._frequencies), self._references[row]
        return 10 * sum(_similarity(candidate, text) for text in texts) / max(1, len(texts))


def cider_d(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    *,
    frequencies: DocumentFrequencies | None = None,
) -> list[float]:
    """CIDEr-D of each candidate on the scale where human captions of COCO reach about 0.85 to 1.

    Args:
        candidates: words of one caption for each image.
        references: for each image its references as words.
        frequencies: fixed document frequencies; None counts over `references`.

    Returns:
        One score for each image, from 0 to 10; their mean is the corpus score.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates for the references of {len(references)} images")
    scorer = CiderD(references, frequencies or DocumentFrequencies.of_references(references))
    return [scorer.score(words, row) for row, words in enumerate(candidates)]
