"""The page of `tellapart truematch run --html`: loads the photos of the bags that it shows, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tellapart.image import load_image
from tellapart.pages import photo_of
from tellapart.truematch import BagScores, Benchmark, ImageId, image_name
from tellapart.truematch_images import BenchmarkImages
from tellapart.truematch_page import ShownBag, choose_bags, truematch_page

__all__ = ["benchmark_page"]

_PHOTO_PX, _THUMBNAIL_PX = 256, 112


def benchmark_page(
    record: Mapping[str, Any],
    benchmark: Benchmark,
    scores: Mapping[int, BagScores],
    *,
    captions: Mapping[ImageId, str],
    images: BenchmarkImages,
    bags_per_size: int,
    max_megapixels: float | None = None,
) -> str:
    """The page of a run.

    Args:
        record: the run as JSON values.
        benchmark: its bags are in the order of the scores.
        scores: by bag size.
        captions: by image.
        images: the photos.
        bags_per_size: most bags shown of each size.
        max_megapixels: as for `load_image`.

    Raises:
        ImageError: a photo cannot be read.
    """
    shown = {
        size: [
            _show(index, benchmark.bags[size][index], found, captions, images, max_megapixels)
            for index in choose_bags(found, bags_per_size)
        ]
        for size, found in scores.items()
    }
    return truematch_page(record, scores, shown)


def _show(
    index: int,
    bag: tuple[ImageId, ...],
    scores: BagScores,
    captions: Mapping[ImageId, str],
    images: BenchmarkImages,
    max_megapixels: float | None,
) -> ShownBag:
    photos, thumbnails = [], []
    for image in bag:
        encoded: Path | bytes = images.encoded(image)
        pixels = load_image(encoded, max_megapixels=max_megapixels)
        photos.append(photo_of(image_name(image), pixels, longest_px=_PHOTO_PX))
        thumbnails.append(photo_of(image_name(image), pixels, longest_px=_THUMBNAIL_PX))
    return ShownBag(
        number=index + 1,
        captions=tuple(captions[image] for image in bag),
        similarity=scores.similarity[index],
        photos=tuple(photos),
        thumbnails=tuple(thumbnails),
    )
