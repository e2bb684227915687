"""The manifest's `confidence`: a few coefficients that turn numbers about a caption into a chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tellapart.manifest_fields import Section

FEATURES = ("key_spread", "value_spread", "key_std", "value_std", "cosine", "mean_logprob")
"""Numbers about a caption and its image, see `confidence.confidence_features`."""


@dataclass(frozen=True, kw_only=True)
class Logistic:
    """A logistic model over `FEATURES` as they are, without scaling."""

    bias: float
    weights: Mapping[str, float]
    """By feature; those left out count nothing."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a confidence is computed and what it means."""

    among: int
    """The caption finds its image among this many photos, its own and others drawn at random."""

    threshold: float
    """In [0, 1]: nine of ten photos of the calibration set reach it; the default of `min_confidence`."""

    photo: Logistic
    """Chance that the image is a photo that the model can read."""

    hit: Logistic
    """Chance that the caption of such a photo retrieves it."""

    def to_fields(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "among": self.among,
            "threshold": self.threshold,
            "photo": {"bias": self.photo.bias, "weights": dict(self.photo.weights)},
            "hit": {"bias": self.hit.bias, "weights": dict(self.hit.weights)},
        }


def read_confidence(section: Section) -> Calibration:
    """Read and check the section.

    Raises:
        ManifestError: a key unknown or missing, a value out of its range, an unknown feature.
    """
    section.only(item.name for item in fields(Calibration))
    threshold = section.number("threshold", least=0.0)
    if threshold > 1:
        raise section.error("threshold", f"must be at most 1, got {threshold}")
    return Calibration(
        among=section.integer("among", least=2, most=1_000_000),
        threshold=threshold,
        photo=_read_logistic(section.section("photo")),
        hit=_read_logistic(section.section("hit")),
    )


def _read_logistic(section: Section) -> Logistic:
    section.only(("bias", "weights"))
    weights = section.section("weights")
    weights.only(FEATURES)
    return Logistic(
        bias=section.number("bias", least=-1e9),
        weights={name: weights.number(name, least=-1e9) for name in weights.values},
    )
