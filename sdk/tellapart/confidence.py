"""How likely a caption is to find its own photo again, from one photo on the device.

    confidence = P(a photo that the model can read) x P(the caption retrieves it)

Both factors are small logistic models whose coefficients lie in the bundle's manifest (`confidence`). The
first looks at the spread of what the decoder attends to, which is narrow for blank, flat, noisy and drawn
images and for pages of text, and at how the caption fits; the second at the caption's likelihood and at its
cosine with the image under the bundle's retriever. `tellapart calibrate` fits them on photos that no training
saw, for captions found by the bundle's own decoding defaults; for other options and in bags the number is an
estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

from tellapart.manifest_confidence import FEATURES, Calibration, Logistic
from tellapart.types import Caption, UnsureCaption, View


def confidence_features(caption: Caption, view: View, cosine: float) -> dict[str, float]:
    """What the confidence is computed from.

    Args:
        caption: of the view.
        view: its image.
        cosine: of caption and image under the bundle's retriever.

    Returns:
        A value for each name of `FEATURES`.
    """
    keys, values = view.cross_kv[0::2], view.cross_kv[1::2]
    found = {
        "key_spread": float(keys.std(axis=3).mean()),
        "value_spread": float(values.std(axis=3).mean()),
        "key_std": float(keys.std()),
        "value_std": float(values.std()),
        "cosine": cosine,
        "mean_logprob": caption.mean_logprob,
    }
    return {name: found[name] for name in FEATURES}


def confidence_of(features: Mapping[str, float], calibration: Calibration) -> float:
    """The calibrated chance, in [0, 1]."""
    return chance(calibration.photo, features) * chance(calibration.hit, features)


def with_confidence(
    caption: Caption, view: View, cosine: float, *, calibration: Calibration, least: float | None
) -> Caption:
    """The caption with its confidence; an `UnsureCaption` where that is below `least`."""
    confidence = confidence_of(confidence_features(caption, view, cosine), calibration)
    values = {item.name: getattr(caption, item.name) for item in fields(Caption)}
    kind = UnsureCaption if least is not None and confidence < least else Caption
    return kind(**{**values, "confidence": confidence})


def chance(model: Logistic, features: Mapping[str, float]) -> float:
    """A logistic model's chance."""
    logit = model.bias + sum(weight * features[name] for name, weight in model.weights.items())
    # The two forms are equal; each is used where its exponential is small.
    return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1.0 + math.exp(logit))
