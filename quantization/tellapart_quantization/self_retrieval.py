"""Do the captions of an INT8 bundle tell look-alikes apart as well as those of the one it came from?

Both caption every photo of a TrueMatch-style benchmark as a device would, and one retriever in float judges
both: were each judged by its own, a change of the judge would pass for a change of the captions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.bundle import Bundle
from tellapart.captioner import Captioner
from tellapart.retriever import Retriever
from tellapart.truematch import BagScores, Benchmark, ImageId, recall_with_interval, score_size
from tellapart.truematch_images import BenchmarkImages
from tellapart.types import FloatArray, IntArray, RuntimeOptions

_RUNTIME = RuntimeOptions(threads=1)


def compare_self_retrieval(
    reference: Path,
    candidate: Path,
    benchmark: Benchmark,
    images: BenchmarkImages,
    *,
    scorer: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """R@1 of the captions of two bundles on the bags of a benchmark.

    Args:
        reference: the bundle that the other one came from.
        candidate: the smaller one.
        benchmark: bags of look-alikes.
        images: their photos.
        scorer: a bundle whose retriever judges both; None takes the reference's.
        say: told what is going on.

    Returns:
        JSON values, recalls in percent, ties as misses: `benchmark` and `scorer` as {"name", "sha256"},
        `ties`, `captions` (photos captioned), `captions_equal` (share of captions that stayed word for word),
        `bags`: by size {"bags", "images", "reference", "int8", "reference_ci95", "int8_ci95", "drop",
        "drop_ci95"}, and `recall_at_1`: {"reference", "int8"}, the means over the sizes. The intervals are
        bootstraps over bags; that of the drop draws the same bags for both.

    Raises:
        DataError: a photo is missing.
        BundleError: a bundle that is no captioner, or a scorer that is no retriever.
    """
    ids = benchmark.ids()
    images.require(ids)
    texts = []
    for bundle, name in ((reference, "float"), (candidate, "INT8")):
        say(f"captioning {len(ids)} photos of {benchmark.name} with the {name} bundle")
        texts.append(_captions(bundle, ids, images))
    image_rows, rows, judge = _embed(scorer or reference, ids, images, texts)
    row_of = {image: row for row, image in enumerate(ids)}
    sizes = {}
    for size, found in benchmark.bags.items():
        bags = np.array([[row_of[image] for image in bag] for bag in found], np.int64)
        sizes[str(size)] = _compare(rows, image_rows, bags)
    before, after = texts
    return {
        "benchmark": {"name": benchmark.name, "sha256": benchmark.sha256},
        "scorer": judge,
        "ties": "strict",
        "captions": len(ids),
        "captions_equal": round(sum(a == b for a, b in zip(before, after, strict=True)) / len(ids), 4),
        "bags": sizes,
        "recall_at_1": {
            key: round(float(np.mean([found[key] for found in sizes.values()])), 2)
            for key in ("reference", "int8")
        },
    }


def recall_drop(report: Mapping[str, Any]) -> float:
    """Points of R@1, the mean over the bag sizes, that the INT8 captions are behind; below 0 if ahead.

    The mean over sizes, because one size of a few hundred captions moves by half a point through two of them.

    Args:
        report: of `compare_self_retrieval`.
    """
    recall = report["recall_at_1"]
    return round(float(recall["reference"] - recall["int8"]), 4)


def _captions(bundle: Path, ids: Sequence[ImageId], images: BenchmarkImages) -> list[str]:
    with Captioner.open(bundle, runtime=_RUNTIME) as captioner:
        found = captioner.caption_many(images.encoded(image) for image in ids)
        return [caption.text for caption in found]


def _embed(
    scorer: Path, ids: Sequence[ImageId], images: BenchmarkImages, texts: Sequence[Sequence[str]]
) -> tuple[FloatArray, list[FloatArray], dict[str, str]]:
    """Rows of the images, rows of each bundle's captions, and the judge's name."""
    with Retriever.open(scorer, runtime=_RUNTIME) as retriever:
        image_rows = retriever.embed_images(images.encoded(image) for image in ids)
        # Equal captions cost once, and are then equal to the last bit.
        distinct = list(dict.fromkeys(text for written in texts for text in written))
        row_of = {text: row for row, text in enumerate(distinct)}
        distinct_rows = retriever.embed_texts(distinct)
        rows = [distinct_rows[[row_of[text] for text in written]] for written in texts]
        return image_rows, rows, _name(retriever.bundle)


def _compare(rows: Sequence[FloatArray], image_rows: FloatArray, bags: IntArray) -> dict[str, Any]:
    before, after = (score_size(captions, image_rows, bags) for captions in rows)
    drop = recall_with_interval(before.hits() - after.hits())
    return {
        "bags": len(bags),
        "images": int(bags.size),
        "reference": _percent(before.recall.value),
        "int8": _percent(after.recall.value),
        "reference_ci95": _interval(before),
        "int8_ci95": _interval(after),
        "drop": _percent(drop.value),
        "drop_ci95": [_percent(drop.low), _percent(drop.high)],
    }


def _interval(scores: BagScores) -> list[float]:
    return [_percent(scores.recall.low), _percent(scores.recall.high)]


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _name(bundle: Bundle) -> dict[str, str]:
    return {"name": bundle.manifest.name, "sha256": bundle.sha256}
