"""ROUGE-L (Lin 2004): longest common subsequence, beta 1.2, best reference each way, as in pycocoevalcap."""

from __future__ import annotations

from collections.abc import Sequence

_BETA = 1.2


def common_subsequence_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        previous = 0
        for column, other in enumerate(second, start=1):
            kept = row[column]
            row[column] = previous + 1 if word == other else max(row[column], row[column - 1])
            previous = kept
    return row[-1]


def rouge_l(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """ROUGE-L of each candidate.

    Precision and recall are each the best over the references, then combined.

    Args:
        candidates: words of one caption for each image.
        references: for each image its references as words.

    Returns:
        One score in [0, 1] for each image; their mean is the corpus score.
    """
    scores = []
    for words, texts in zip(candidates, references, strict=True):
        lengths = [common_subsequence_length(words, text) for text in texts]
        precision = max((length / max(1, len(words)) for length in lengths), default=0.0)
        recall = max(
            (length / max(1, len(text)) for length, text in zip(lengths, texts, strict=True)), default=0.0
        )
        if precision and recall:
            scores.append((1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision))
        else:
            scores.append(0.0)
    return scores
