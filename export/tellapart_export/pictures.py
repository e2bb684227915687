"""How a checkpoint wants its pictures: `preprocessor_config.json` -> the bundle's page, proved on a picture.

The device resizes with Pillow, as the slow processors of transformers do, so the pixels agree exactly or
the export stops.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.errors import CheckpointError, ParityError
from tellapart.manifest import Preprocessing
from tellapart.preprocess import to_input
from tellapart.types import PixelArray
from tellapart_export.hugging_face import quiet

FILE = "preprocessor_config.json"

_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_LONG_SIDE, _TILE = 4 * 364, 364  # where a processor that cuts tiles says nothing
_LONGEST_SIDE = 4096  # more a bundle's page does not take
_EXTRA = ("do_pad", "do_rescale_pad", "do_align_long_axis", "do_thumbnail")

PIXEL_GAP = 2e-6
"""Largest difference of a normalised pixel: one rounding of float32 at values up to about 3."""


def read_preprocessing(folder: Path, *, image_px: int) -> Preprocessing:
    """The page of a checkpoint; what its file leaves out is as transformers' processors have it.

    Args:
        folder: of the checkpoint.
        image_px: side that the network was built for.

    Raises:
        CheckpointError: no such file, or something that the device's preprocessing cannot do.
    """
    file = folder / FILE
    page = _read_page(file)
    for name in _EXTRA:
        if page.get(name):
            raise CheckpointError(f"{file} asks for {name}, which the device's preprocessing does not do")
    fit, crop = _sides(page.get("size", image_px), file), page.get("do_center_crop", False)
    cut = _sides(page.get("crop_size", image_px), file)
    side = cut[0] if crop else fit[0]
    if side != image_px or (not crop and fit != (image_px, image_px)) or cut[0] != cut[1]:
        raise CheckpointError(
            f"{file} makes pictures of {cut if crop else fit} pixels, and the network was built for "
            f"{image_px} x {image_px}"
        )
    kind = _filter(page.get("resample", 2), file)
    # Without a short side, both sides are bent to the size and the cut takes the middle of that.
    if crop and not _is_short_side(page.get("size")) and fit != cut:
        raise CheckpointError(f"{file} bends pictures to {fit} and cuts {cut} out of them; not supported")
    return Preprocessing(
        image_px=image_px,
        resize="crop" if crop and _is_short_side(page.get("size")) else "squash",
        resize_px=fit[0] if crop and _is_short_side(page.get("size")) and fit[0] != image_px else 0,
        filter=kind,
        mean=_three(page.get("image_mean", [0.5] * 3), file),
        std=_three(page.get("image_std", [0.5] * 3), file),
        in_graph=True,
    )


def read_single_tile(folder: Path, *, image_px: int) -> Preprocessing:
    """The page of a checkpoint whose processor can cut pictures into tiles, with the cutting off.

    Such a processor (Idefics3, SmolVLM) first brings the long side to one size and then bends the whole
    picture into a tile.

    Args:
        folder: of the checkpoint.
        image_px: side of a tile that the network was built for.

    Raises:
        CheckpointError: no such file, or something that the device's preprocessing cannot do.
    """
    file = folder / FILE
    page = _read_page(file)
    long = page.get("size", {"longest_edge": _LONG_SIDE})
    tile = page.get("max_image_size", {"longest_edge": _TILE})
    sides = [side.get("longest_edge") if isinstance(side, Mapping) else None for side in (long, tile)]
    if sides[1] != image_px:
        raise CheckpointError(
            f"{file} makes tiles of {tile!r} pixels, and the network was built for {image_px} x {image_px}"
        )
    if not isinstance(sides[0], int) or not image_px <= sides[0] <= _LONGEST_SIDE:
        raise CheckpointError(
            f"{file} first makes pictures of the size {long!r}; expected a longest_edge from {image_px} to "
            f"{_LONGEST_SIDE}"
        )
    if not page.get("do_resize", True):
        raise CheckpointError(f"{file} leaves pictures as large as they are, which no graph here can read")
    return Preprocessing(
        image_px=image_px,
        resize="squash",
        resize_px=sides[0],
        filter=_filter(page.get("resample", 1), file),
        mean=_three(page.get("image_mean", [0.5] * 3), file),
        std=_three(page.get("image_std", [0.5] * 3), file),
        in_graph=True,
    )


def check_preprocessing(folder: Path, page: Preprocessing, **settings: Any) -> float:
    """Largest gap between the device's pixels and those of the checkpoint's own processor, on drawn pictures.

    Args:
        folder: of the checkpoint.
        page: what the device goes by.
        settings: for the processor's call, where its file asks for more than the device does.

    Raises:
        CheckpointError: transformers cannot make the processor.
        ParityError: the pixels differ.
    """
    from transformers import AutoImageProcessor

    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_fast=False
            )
    except Exception as error:  # OSError, ValueError, and whatever a file that is wrong brings about
        raise CheckpointError(f"{folder / FILE}: transformers cannot make its processor ({error})") from error
    largest = 0.0
    mean, std = np.array(page.mean, np.float32), np.array(page.std, np.float32)
    for picture in _pictures(page.image_px):
        with quiet():
            wanted = processor(picture, return_tensors="np", **settings)["pixel_values"][0]
        wanted = wanted[0] if wanted.ndim == 4 else wanted  # tiles of a picture, of which there is one
        given = ((to_input(picture, page).astype(np.float32) - mean) / std).transpose(2, 0, 1)
        gap = float(np.abs(wanted - given).max()) if wanted.shape == given.shape else float("inf")
        largest = max(largest, gap)
        if not gap <= PIXEL_GAP:
            raise ParityError(
                f"{folder / FILE}: its processor and the device make other pixels of a picture "
                f"{picture.shape} "
                f"(largest gap {gap:.1e}); the preprocessing is not one that the bundle can describe"
            )
    return largest


def drawn_pictures(side: int, count: int) -> PixelArray:
    """Soft blobs rather than noise: noise drives a vision network into a corner that photos never reach.

    Returns:
        (count, side, side, 3) uint8, the same at each call.
    """
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (count, 5, 5, 3))
    places = np.linspace(0, 3.999, side)
    low, share = places.astype(int), places % 1
    rows = coarse[:, low] * (1 - share)[None, :, None, None] + coarse[:, low + 1] * share[None, :, None, None]
    columns = rows[:, :, low] * (1 - share)[:, None] + rows[:, :, low + 1] * share[:, None]
    return np.ascontiguousarray(columns.clip(0, 255).astype(np.uint8))


def _pictures(side: int) -> Iterator[PixelArray]:
    """Larger and smaller than the input, upright and lying, with odd sides."""
    [large, small] = drawn_pictures(2 * side + 7, 2)
    yield large[: side + 41]
    yield np.ascontiguousarray(large[:, : side + 90])
    yield small[: side // 2 + 1, : side // 2 + 6]
    yield small[:side, :side]


def _read_page(file: Path) -> dict[str, Any]:
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is missing or no JSON ({error}); it says how photos become pixels, so copy it into the "
            f"folder"
        ) from error
    if not isinstance(page, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(page).__name__}")
    if not page.get("do_normalize", True) or not page.get("do_rescale", True):
        raise CheckpointError(f"{file} leaves pixels unscaled, which the device's preprocessing does not do")
    return page


def _filter(kind: Any, file: Path) -> str:
    if kind not in _FILTERS:
        raise CheckpointError(f"{file}: resample {kind!r} is none of {_FILTERS}, Pillow's numbers")
    return _FILTERS[kind]


def _is_short_side(size: Any) -> bool:
    return isinstance(size, (int, Mapping)) and (isinstance(size, int) or "shortest_edge" in size)


def _sides(size: Any, file: Path) -> tuple[int, int]:
    """Height and width that a page's size means."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, Mapping):
        if isinstance(size.get("shortest_edge"), int):
            return size["shortest_edge"], size["shortest_edge"]
        if isinstance(size.get("height"), int) and isinstance(size.get("width"), int):
            return size["height"], size["width"]
    raise CheckpointError(f"{file}: cannot read the size {size!r}")


def _three(values: Any, file: Path) -> tuple[float, float, float]:
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise CheckpointError(f"{file}: expected three numbers, one per channel, got {values!r}")
    one, two, three = (float(value) * 255.0 for value in values)
    return one, two, three
