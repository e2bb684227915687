"""Pixels -> what the vision graph reads. The trainer, the calibrator and the device call this one function.

Pillow's resize is the only one in the house: its filters widen when they shrink an image, which others do
not, and a network notices the difference.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from tellapart.errors import MissingExtraError
from tellapart.image import check_pixels
from tellapart.manifest import Preprocessing
from tellapart.types import FloatArray, PixelArray

if TYPE_CHECKING:
    from types import ModuleType

_LONGEST_SIDES = 8
"""Cropping a strip longer than this many short sides starts from its middle part: the rest is cut off
anyway, and a 1 x 50,000,000 image must not be enlarged to 224 x 11,200,000,000 first."""


def to_input(rgb: PixelArray, preprocessing: Preprocessing) -> PixelArray | FloatArray:
    """One image, ready to be stacked into a batch.

    Args:
        rgb: (h, w, 3) uint8, upright; not changed.
        preprocessing: the bundle's or the trainer's page.

    Returns:
        A new array: (s, s, 3) uint8 where the graph scales by itself (`in_graph`), else (3, s, s) float32,
        (value - mean) / std per channel. An image of s x s comes back pixel for pixel.

    Raises:
        ShapeError: not (h, w, 3) uint8.
        MissingExtraError: the image has to be resized and Pillow is not installed.
    """
    check_pixels(rgb)
    side = preprocessing.image_px
    square = rgb
    if preprocessing.resize == "crop":
        square = _crop(rgb, side, fit=preprocessing.resize_px or side, kind=preprocessing.filter)
    elif preprocessing.resize_px:
        square = _resize(rgb, *_long_side_to(preprocessing.resize_px, rgb), preprocessing.filter)
    square = _resize(square, side, side, preprocessing.filter)
    if preprocessing.in_graph:
        return np.array(square, np.uint8, order="C")  # a copy, even where nothing had to be done
    mean = np.array(preprocessing.mean, np.float32)
    std = np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(((square.astype(np.float32) - mean) / std).transpose(2, 0, 1))


def _crop(rgb: PixelArray, side: int, *, fit: int, kind: str) -> PixelArray:
    """Short side to `fit`, then the middle; sizes and offsets round down, as CLIP's processor does."""
    height, width = rgb.shape[:2]
    short = min(height, width)
    if max(height, width) > _LONGEST_SIDES * short:
        rgb = _middle(rgb, min(height, _LONGEST_SIDES * short), min(width, _LONGEST_SIDES * short))
        height, width = rgb.shape[:2]
    rgb = _resize(rgb, fit * height // short, fit * width // short, kind)
    return _middle(rgb, side, side)


def _long_side_to(longest: int, rgb: PixelArray) -> tuple[int, int]:
    """Height and width with the long side fitted; the short one is rounded as Idefics3's processor does."""
    height, width = rgb.shape[:2]
    ratio = width / height
    short = int(longest / ratio if width >= height else longest * ratio)
    short = max(short + short % 2, 1)
    return (short, longest) if width >= height else (longest, short)


def _middle(rgb: PixelArray, height: int, width: int) -> PixelArray:
    top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
    return rgb[top : top + height, left : left + width]


def _resize(rgb: PixelArray, height: int, width: int, kind: str) -> PixelArray:
    if rgb.shape[:2] == (height, width):
        return rgb
    Image = _pillow()
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    return np.array(picture.resize((width, height), getattr(Image.Resampling, kind.upper())))


def _pillow() -> ModuleType:
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise MissingExtraError("cpu", "Resizing an image needs Pillow, which is not installed") from error
