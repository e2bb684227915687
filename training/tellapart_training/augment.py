"""Changes of an image under which its captions stay true.

A mirror image makes "left" a lie and a colour shift makes "red" one, so each image carries two flags made
from all its captions. Everything else (crop, brightness, contrast) is mild. Parameters are drawn on the CPU
from a generator keyed by (seed, epoch, index): what an image looks like in an epoch depends neither on the
batch it is in nor on where a run was interrupted. One bilinear resampling does mirror and crop together.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tellapart_training.config import AugmentConfig

_SIDES = re.compile(r"\b(left|right|leftmost|rightmost|lefthand|righthand|clockwise|counterclockwise)\b")
_COLOURS = re.compile(
    r"\b(?:black|white|red|green|blue|yellow|orange|brown|pink|purple|violet|gr[ae]y|golden|gold|silver|tan|beige|"
    r"maroon|turquoise|teal|navy|crimson|scarlet|blonde?|brunette|redhead(?:ed)?|ginger|auburn|burgundy|lavender|"
    r"magenta|cyan|khaki|olive|cream|ivory|bronze|copper|peach|lime|aqua|colou?r(?:s|ed|ful)?|"
    r"multi-?colou?red|tri-?colou?red|(?:black|white|red|green|blue|yellow|orange|brown|pink|purple|gr[ae]y)ish)\b"
)


class Truths(NamedTuple):
    """What must not change in one image."""

    sides: bool
    """A caption speaks of left or right."""
    colours: bool
    """A caption names a colour."""


def truths_of(captions: Sequence[str]) -> Truths:
    """The flags of an image from all its captions (any case)."""
    texts = [caption.lower() for caption in captions]
    return Truths(
        sides=any(_SIDES.search(text) for text in texts),
        colours=any(_COLOURS.search(text) for text in texts),
    )


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator that depends on the key alone, on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Changes(NamedTuple):
    """Drawn parameters for a batch; each (b,) or as said, float32."""

    mirror: Tensor
    """-1 mirrored, 1 not."""
    extent: Tensor
    """(b, 2) width and height of the crop as shares of the image."""
    centre: Tensor
    """(b, 2) centre of the crop in [-1, 1] coordinates."""
    brightness: Tensor
    """Factor."""
    contrast: Tensor
    """Factor about the image's mean."""
    saturation: Tensor
    """Factor about grey; 1 where a colour is named."""
    channels: Tensor
    """(b, 3) factor of each channel; 1 where a colour is named."""


def draw_changes(
    config: AugmentConfig, truths: Sequence[Truths], generators: Sequence[torch.Generator]
) -> Changes:
    """Draw what happens to each image of a batch.

    Args:
        config: limits.
        truths: one for each image.
        generators: one for each image; each is advanced by the same number of draws whatever the flags say.
    """
    draws = torch.stack(
        [torch.rand(11, generator=generator) for generator in generators]
    )  # (b, 11) in [0, 1)
    signed = draws * 2 - 1
    sides = torch.tensor([truth.sides for truth in truths])
    free = torch.tensor([0.0 if truth.colours else 1.0 for truth in truths])
    mirror = torch.where((draws[:, 0] < config.flip) & ~sides, -1.0, 1.0)
    area = config.min_scale + (1 - config.min_scale) * draws[:, 1]
    aspect = torch.exp(signed[:, 2] * math.log(config.max_aspect) * (1 if config.min_scale < 1 else 0))
    extent = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp(max=1)
    return Changes(
        mirror=mirror,
        extent=extent,
        centre=signed[:, 3:5] * (1 - extent),
        brightness=1 + config.brightness * signed[:, 5],
        contrast=1 + config.contrast * signed[:, 6],
        saturation=1 + config.colour * signed[:, 7] * free,
        channels=1 + config.colour * signed[:, 8:11] * free[:, None],
    )


def apply_changes(pixels: Tensor, changes: Changes) -> Tensor:
    """Change a batch of images.

    Args:
        pixels: (b, s, s, 3) uint8, RGB.
        changes: drawn parameters, moved to the device of the pixels.

    Returns:
        (b, s, s, 3) uint8; the input is left as it is.
    """
    mirror, extent, centre, brightness, contrast, saturation, channels = (
        each.to(pixels.device) for each in changes
    )
    images = pixels.permute(0, 3, 1, 2).float()
    theta = torch.zeros(len(images), 2, 3, device=pixels.device)
    theta[:, 0, 0] = extent[:, 0] * mirror
    theta[:, 1, 1] = extent[:, 1]
    theta[:, :, 2] = centre
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * saturation[:, None, None, None]
    images = images * channels[:, :, None, None]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast[:, None, None, None]) * brightness[:, None, None, None]
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def augment(
    pixels: Tensor, config: AugmentConfig, truths: Sequence[Truths], generators: Sequence[torch.Generator]
) -> Tensor:
    """Draw and apply; (b, s, s, 3) uint8 in and out."""
    if not config.enabled:
        return pixels
    return apply_changes(pixels, draw_changes(config, truths, generators))
