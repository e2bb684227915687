"""`tellapart mine-bags`: training bags of look-alike images, mined once and kept as names in one JSON file.

Images that a training run holds back to select on are best left out here already (`tuning_images`): the
trainer drops every bag that holds one, and with one image in twenty held back that is two of three bags of
20.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.errors import DataError, UsageError
from tellapart.manifest import MANIFEST_NAME
from tellapart.mining import BANDS, Band, combined_rows, mine_bags
from tellapart.types import FloatArray, RuntimeOptions
from tellapart_training.config_tables import DataConfig
from tellapart_training.data import (
    CaptionRecord,
    normalise_caption,
    normalised_records,
    read_captions,
    split_records,
)
from tellapart_training.images import ImageSource, say_on_stderr
from tellapart_training.neighbours import choose_neighbours
from tellapart_training.run_folder import write_atomically

FORMAT = 1
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class MineOptions:
    """What to mine from."""

    images: Path
    """Folder or uncompressed .tar."""
    captions: Path | None = None
    """Captions file; None takes every image and likeness by sight alone."""
    splits: tuple[str, ...] = ("train",)
    """Splits of the captions file, as `data.train_splits`; "" takes all."""
    tuning_images: int = 0
    """Images that training holds back, as `data.tuning_images`: they are in no bag."""
    data_seed: int = 0
    """What they are drawn by, as `data.seed`."""
    scorer: Path
    """Retriever whose embeddings say what is alike: a checkpoint, or a device bundle."""
    sizes: tuple[int, ...] = (2, 3, 5, 7, 10, 15, 20)
    bands: tuple[Band, ...] = ("hard",)
    out: Path
    seed: int = 0
    near_duplicate: float = 0.97
    """Of images whose cosine is above this, all but one stay out of every bag."""
    index: str = "auto"
    """`exact`, `faiss`, or `auto` by the number of images."""
    cache: Path = Path("runs/cache")

    def __post_init__(self) -> None:
        unknown = [band for band in self.bands if band not in BANDS]
        if unknown or not self.bands:
            raise UsageError(f"--bands must be of {', '.join(BANDS)}, got {', '.join(unknown) or 'none'}")
        if not self.sizes or min(self.sizes) < 2 or len(set(self.sizes)) < len(self.sizes):
            raise UsageError(f"--sizes must be different numbers from 2, got {list(self.sizes)}")
        if self.tuning_images < 0:
            raise UsageError(f"--tuning-images must be at least 0, got {self.tuning_images}")


@dataclass(frozen=True)
class TrainingBags:
    """Bags by band and size, of image names."""

    path: Path
    bags: Mapping[str, Mapping[str, Sequence[Sequence[str]]]]

    def of(self, band: str, size: int) -> Sequence[Sequence[str]]:
        """Bags of a band and a size.

        Raises:
            DataError: the file has none.
        """
        found = self.bags.get(band, {}).get(str(size), ())
        if not found:
            known = [f"{each} {size}" for each, sizes in self.bags.items() for size in sizes]
            raise DataError(
                f"{self.path} has no {band} bags of {size}, only {', '.join(known)}: mine them too"
            )
        return found


def mine_training_bags(options: MineOptions) -> dict[str, Any]:
    """Mine and write the file.

    Returns:
        Counts by band and size, as they are in the file.

    Raises:
        DataError: images or captions that cannot be used.
        CheckpointError: the scorer cannot be opened.
        UsageError: fewer images than a bag holds.
    """
    source = ImageSource(options.images)
    records = _records(options, source)
    names = [record.image for record in records]
    embedded = _embed(options, source, records)
    image_rows, means = embedded.image_rows, embedded.caption_means
    rows = image_rows if means is None else combined_rows(image_rows, means)
    neighbours = choose_neighbours(options.index, len(rows))
    bags: dict[str, dict[str, list[list[str]]]] = {}
    counts: dict[str, dict[str, Any]] = {}
    for band in options.bands:
        for size in options.sizes:
            mined = mine_bags(
                rows, size=size, band=band, seed=options.seed, near_duplicate=options.near_duplicate,
                image_rows=image_rows, neighbours=neighbours,
            )  # fmt: skip
            bags.setdefault(band, {})[str(size)] = [[names[row] for row in bag] for bag in mined.bags]
            counts.setdefault(band, {})[str(size)] = mined.to_record()
            say_on_stderr(f"{band} bags of {size}: {len(mined.bags)}, cosine {mined.mean_similarity:.3f}")
    page = {
        "format": FORMAT,
        "source": {
            "images": source.path.name,
            "splits": list(options.splits) if options.captions else None,
            "tuning_images": options.tuning_images,
            "data_seed": options.data_seed,
        },
        "embedding": {"name": embedded.name, "sha256": embedded.sha256, "captions": means is not None},
        "seed": options.seed,
        "near_duplicate": options.near_duplicate,
        "counts": counts,
        "bags": bags,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, json.dumps(page, ensure_ascii=False) + "\n")
    return counts


def read_training_bags(path: Path) -> TrainingBags:
    """Read what `mine_training_bags` wrote.

    Raises:
        DataError: absent, not such a file, or a bag that is not of its size or holds an image twice.
    """
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the bags {path}: {error}; make them with `tellapart mine-bags`"
        ) from error
    bags = page.get("bags") if isinstance(page, dict) and page.get("format") == FORMAT else None
    if not isinstance(bags, dict):
        raise DataError(f"{path} is not a file of `tellapart mine-bags` of format {FORMAT}: mine again")
    for band, sizes in bags.items():
        for size, found in sizes.items() if isinstance(sizes, dict) else [("", None)]:
            if not isinstance(found, list) or not all(_is_bag(bag, size) for bag in found):
                raise DataError(f"{path}: {band} bags of {size!r} are damaged: mine again")
            names = [name for bag in found for name in bag]
            if len(set(names)) < len(names):
                raise DataError(f"{path}: an image is in two {band} bags of {size}: mine again")
    return TrainingBags(path, bags)


def _is_bag(bag: object, size: str) -> bool:
    """Whether this is a list of as many different names as its size says."""
    names = bag if isinstance(bag, list) and all(isinstance(name, str) for name in bag) else []
    return str(len(names)) == size and len(set(names)) == len(names)


@dataclass(frozen=True)
class _Embedded:
    """Images as a retriever sees them: unit rows (n, d), and the mean of the unit rows of their captions."""

    name: str
    sha256: str
    image_rows: FloatArray
    caption_means: FloatArray | None


def _records(options: MineOptions, source: ImageSource) -> list[CaptionRecord]:
    """The images to mine, chosen and normalised as a training run does it."""
    if options.captions is None:
        names = [name for name in source.names() if name.lower().endswith(_IMAGE_ENDINGS)]
        records = [CaptionRecord(name, "", ()) for name in names]
        splits: Sequence[str] = ("",)
    else:
        read = read_captions(options.captions)
        records = normalised_records(read, min_words=DataConfig().min_words)
        splits = [record.split for record in records] if "" in options.splits else options.splits
    train, _ = split_records(
        records, train_splits=splits, tuning_images=options.tuning_images, seed=options.data_seed
    )
    return train


def _embed(options: MineOptions, source: ImageSource, records: Sequence[CaptionRecord]) -> _Embedded:
    names = [record.image for record in records]
    captions = [record.captions for record in records] if options.captions is not None else []
    texts = [text for each in captions for text in each]
    if options.scorer.is_file() or (options.scorer / MANIFEST_NAME).exists():
        from tellapart.retriever import Retriever

        with Retriever.open(options.scorer, runtime=RuntimeOptions()) as retriever:
            images = retriever.embed_images(source.read(name) for name in names)
            normal = [normalise_caption(text) for text in texts]
            means = _means(retriever.embed_texts(normal), captions) if captions else None
            return _Embedded(retriever.bundle.manifest.name, retriever.bundle.sha256, images, means)
    from tellapart_training.scorer import open_scorer

    scorer = open_scorer(options.scorer)
    images = scorer.embed_images(source, names, cache=options.cache)
    means = _means(scorer.embed_texts(texts).cpu().numpy(), captions) if captions else None
    return _Embedded(scorer.name, scorer.sha256, images, means)


def _means(rows: FloatArray, captions: Sequence[Sequence[str]]) -> FloatArray:
    """(n, d) float32, the mean of the rows of each image's captions; rows come image after image."""
    counts = np.array([len(texts) for texts in captions])
    starts = np.cumsum(counts) - counts
    return np.asarray(np.add.reduceat(rows, starts, axis=0) / counts[:, None], np.float32)
