"""TrueMatch: does a caption, made from its image alone, find that image among look-alikes?

Pure functions on arrays and one dataclass per result, so that device, trainer and evaluator score alike;
nothing here captions. `truematch_files` reads and writes the benchmark and is re-exported.

Similarities are summed pair by pair in float64, not by a matrix product: BLAS adds up the columns at the edge
of a block in another order, so that two equal images would get cosines that differ in the last bit and a tie
would pass for a decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tellapart.errors import ShapeError, UsageError
from tellapart.similarity import TIE_RULES, RealArray, TieRule, hits_at_1, hits_at_k, rank_of_own
from tellapart.truematch_files import (
    Bag,
    Benchmark,
    ImageId,
    captions_of,
    image_name,
    read_benchmark,
    read_captions_file,
    write_benchmark,
)
from tellapart.types import FloatArray, IntArray

__all__ = [
    "Bag",
    "BagScores",
    "Benchmark",
    "GroupRecall",
    "ImageId",
    "Recall",
    "bag_similarity",
    "captions_of",
    "groups_recall",
    "image_name",
    "random_groups",
    "read_benchmark",
    "read_captions_file",
    "recall_with_interval",
    "score_bags",
    "score_size",
    "write_benchmark",
]

RESAMPLES = 2000
"""Bootstrap resamples; more would move an end of the interval by less than a tenth of its width."""

_RESAMPLES_AT_ONCE = 50


@dataclass(frozen=True)
class Recall:
    """A recall with its 95 % bootstrap interval, all in [0, 1]."""

    value: float
    low: float
    high: float

    def to_record(self) -> list[float]:
        """The interval as two rounded numbers."""
        return [round(self.low, 6), round(self.high, 6)]


@dataclass(frozen=True, kw_only=True, eq=False)
class BagScores:
    """All bags of one size, scored."""

    size: int
    ties: TieRule
    similarity: RealArray
    """(m, k, k) float64, bag, caption, image; cosine in [-1, 1] up to rounding."""

    recall: Recall
    """Recall@1 under `ties`; the interval resamples bags, because captions of a bag hang together."""

    by_rule: Mapping[TieRule, float]
    """Recall@1 under every tie rule: strict <= expected <= optimistic."""

    @property
    def chance(self) -> float:
        """Recall@1 of a caption that says nothing, under "expected"."""
        return 1.0 / self.size

    def hits(self, ties: TieRule | None = None) -> RealArray:
        """(m, k) float64 in [0, 1], per bag and caption; under `self.ties` where no rule is named."""
        return _hits(self.similarity, ties or self.ties)

    def to_record(self) -> dict[str, Any]:
        """The figures as plain JSON values, as the contract names them."""
        own = np.diagonal(self.similarity, axis1=1, axis2=2)
        return {
            "bags": len(self.similarity),
            "images": self.similarity.shape[0] * self.size,
            "recall_at_1": round(self.recall.value, 6),
            "ci95": self.recall.to_record(),
            "chance": round(self.chance, 6),
            **{f"recall_at_1_{rule}": round(self.by_rule[rule], 6) for rule in TIE_RULES},
            "mean_own_cosine": round(float(own.mean()), 6),
        }


@dataclass(frozen=True, kw_only=True)
class GroupRecall:
    """Retrieval inside random groups; RD100 where a group is 100 images."""

    groups: int
    images: int
    ties: TieRule
    recall_at_1: Recall
    """The interval resamples captions: groups are drawn at random, so they hardly hang together."""

    recall_at_5: float
    mean_rank: float
    """Place of the own image, 1 is best."""

    median_rank: float
    chance: float
    by_rule: Mapping[TieRule, float]
    """Recall@1 under every tie rule."""

    def to_record(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "groups": self.groups,
            "images": self.images,
            "recall_at_1": round(self.recall_at_1.value, 6),
            "ci95": self.recall_at_1.to_record(),
            "chance": round(self.chance, 6),
            **{f"recall_at_1_{rule}": round(self.by_rule[rule], 6) for rule in TIE_RULES},
            "recall_at_5": round(self.recall_at_5, 6),
            "mean_rank": round(self.mean_rank, 4),
            "median_rank": round(self.median_rank, 4),
        }


def bag_similarity(caption_rows: FloatArray, image_rows: FloatArray, bags: IntArray) -> RealArray:
    """Cosine of every caption of a bag with every image of it.

    Args:
        caption_rows: (n, d) float32, unit rows; row i is the caption of image i.
        image_rows: (n, d) float32, unit rows.
        bags: (m, k) int, rows of the images in each bag, k from 2.

    Returns:
        (m, k, k) float64 in [-1, 1] up to rounding, not clipped: that would make ties. Axis 1 is the
        caption, axis 2 the image.

    Raises:
        ShapeError: arrays that do not match, a row that is not there or comes twice in a bag, or a value
            that is not finite.
    """
    if caption_rows.ndim != 2 or caption_rows.shape != image_rows.shape:
        raise ShapeError(
            f"expected captions and images as two (n, d), got {caption_rows.shape} and {image_rows.shape}"
        )
    if bags.ndim != 2 or bags.shape[1] < 2 or not len(bags) or not np.issubdtype(bags.dtype, np.integer):
        raise ShapeError(f"expected bags as (m, k) int with m > 0 and k > 1, got {bags.shape} {bags.dtype}")
    if bags.min() < 0 or bags.max() >= len(image_rows):
        raise ShapeError(f"bags name rows {bags.min()} to {bags.max()}, and there are {len(image_rows)}")
    if (np.diff(np.sort(bags, axis=1), axis=1) == 0).any():
        raise ShapeError("a bag names a row twice; an image cannot be told apart from itself")
    similarity = np.empty((len(bags), bags.shape[1], bags.shape[1]))
    for place, bag in enumerate(bags):
        similarity[place] = _cosines(caption_rows[bag], image_rows[bag])
    if not np.isfinite(similarity).all():
        raise ShapeError("an embedding holds NaN or infinity, which compares with nothing")
    return similarity


def score_bags(
    caption_rows: FloatArray, image_rows: FloatArray, bags: IntArray, *, ties: TieRule = "strict"
) -> RealArray:
    """Whether each caption picks its own image out of its bag.

    Args:
        caption_rows: (n, d) float32, unit rows; row i is the caption of image i.
        image_rows: (n, d) float32, unit rows.
        bags: (m, k) int, rows of the images in each bag.
        ties: how an equal best image counts, as in `similarity`.

    Returns:
        (m, k) float64 in [0, 1]; their mean is recall@1(k).

    Raises:
        ShapeError: as `bag_similarity`.
        UsageError: an unknown tie rule.
    """
    return _hits(bag_similarity(caption_rows, image_rows, bags), ties)


def score_size(
    caption_rows: FloatArray,
    image_rows: FloatArray,
    bags: IntArray,
    *,
    ties: TieRule = "strict",
    seed: int = 0,
) -> BagScores:
    """All bags of one size: similarities, recall@1 with its interval, and every tie rule.

    Args:
        caption_rows: as for `score_bags`.
        image_rows: as for `score_bags`.
        bags: as for `score_bags`.
        ties: the rule of the headline figure.
        seed: of the bootstrap.

    Raises:
        ShapeError: as `bag_similarity`.
        UsageError: an unknown tie rule.
    """
    similarity = bag_similarity(caption_rows, image_rows, bags)
    return BagScores(
        size=bags.shape[1],
        ties=ties,
        similarity=similarity,
        recall=recall_with_interval(_hits(similarity, ties), seed=seed),
        by_rule={rule: float(_hits(similarity, rule).mean()) for rule in TIE_RULES},
    )


def recall_with_interval(hits: RealArray, *, seed: int = 0) -> Recall:
    """Mean of hits, with the 95 % percentile interval of a bootstrap over rows.

    Args:
        hits: (m, k) or (m,) float in [0, 1]; a row, which is a bag, is drawn as a whole.
        seed: equal seeds give equal intervals.

    Returns:
        The mean and its interval. With few rows the interval is too narrow, with one it has no width.

    Raises:
        ShapeError: no rows, or another shape.
    """
    if hits.ndim not in (1, 2) or not hits.size:
        raise ShapeError(f"expected hits as (m, k) or (m,), got {hits.shape}")
    per_row = hits.reshape(len(hits), -1).mean(axis=1)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            per_row[generator.integers(0, len(per_row), (_RESAMPLES_AT_ONCE, len(per_row)))].mean(axis=1)
            for _ in range(RESAMPLES // _RESAMPLES_AT_ONCE)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Recall(float(per_row.mean()), float(low), float(high))


def groups_recall(
    caption_rows: FloatArray,
    image_rows: FloatArray,
    groups: IntArray,
    *,
    ties: TieRule = "strict",
    seed: int = 0,
) -> GroupRecall:
    """Retrieval of each caption's own image inside its group.

    Args:
        caption_rows: (n, d) float32, unit rows; row i is the caption of image i.
        image_rows: (n, d) float32, unit rows.
        groups: (g, s) int, rows of the images in each group; s is 100 for RD100.
        ties: how equal images count, as in `similarity`.
        seed: of the bootstrap.

    Raises:
        ShapeError: as `bag_similarity`.
        UsageError: an unknown tie rule.
    """
    similarity = bag_similarity(caption_rows, image_rows, groups)
    own = np.eye(groups.shape[1], dtype=np.bool_)
    ranks = np.concatenate([rank_of_own(group, ties=ties) for group in similarity])
    at_5 = np.concatenate([hits_at_k(group, own, k=5, ties=ties) for group in similarity])
    return GroupRecall(
        groups=len(groups),
        images=groups.size,
        ties=ties,
        recall_at_1=recall_with_interval(_hits(similarity, ties).reshape(-1), seed=seed),
        recall_at_5=float(at_5.mean()),
        mean_rank=float(ranks.mean()),
        median_rank=float(np.median(ranks)),
        chance=1.0 / groups.shape[1],
        by_rule={rule: float(_hits(similarity, rule).mean()) for rule in TIE_RULES},
    )


def random_groups(ids: Sequence[ImageId], *, size: int = 100, seed: int = 0) -> tuple[Bag, ...]:
    """One permutation of images, cut into groups; what is left over at its end is dropped.

    Args:
        ids: images, each once; their order does not matter.
        size: images per group.
        seed: of the permutation.

    Returns:
        Groups to be stored: every model must be scored on the same ones, as RD100 moves with the grouping.

    Raises:
        UsageError: a size below 2, or an image twice.
    """
    if size < 2 or len(set(ids)) < len(ids):
        raise UsageError(f"expected groups of at least 2 out of different images, got size {size}")
    # Numbers before names and each in order, so that one set of images gives one permutation.
    ordered = sorted(ids, key=lambda image: (isinstance(image, str), image))
    drawn = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
    return tuple(tuple(drawn[first : first + size]) for first in range(0, len(drawn) - size + 1, size))


def _hits(similarity: RealArray, ties: TieRule) -> RealArray:
    return np.stack([hits_at_1(bag, ties=ties) for bag in similarity])


def _cosines(captions: FloatArray, images: FloatArray) -> RealArray:
    """(k, k) float64; every pair is summed in the same order, see the top of the module."""
    wide = images.astype(np.float64)
    rows = [(wide * caption.astype(np.float64)).sum(axis=1) for caption in captions]
    return np.stack(rows)
