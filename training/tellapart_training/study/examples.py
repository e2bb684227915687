"""Bags in which training made the captions tell the photos apart, and bags in which they still fail.

Which bags are shown follows from rules that nobody's eye has a part in, and how many bags there are of each
kind stands beside them, those that got worse included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.errors import UsageError
from tellapart.similarity import RealArray, margins
from tellapart.truematch import Benchmark, ImageId, bag_similarity, captions_of, image_name
from tellapart.types import IntArray
from tellapart_training.images import ImageSource
from tellapart_training.scorer import EmbeddingArray, Scorer

TOLD_APART = (
    "every caption after finds its own photo and more than half of those before did not; "
    "largest rise of the bag's summed margin first"
)
STILL_FAILING = "at least one caption after finds another photo; smallest summed margin after first"


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a judge makes of the captions of every bag of one size: m bags of k photos."""

    captions: tuple[tuple[str, ...], ...]
    """By bag, in the bag's order."""

    finds: IntArray
    """(m, k) int64, place in the bag of the photo found; the best other one at a tie, as ties are misses."""

    margins: RealArray
    """(m, k) float64, cosine with the own photo less the best other one; above 0 is a hit."""

    @property
    def right(self) -> IntArray:
        """(m,) int64, captions of each bag that find their own photo."""
        return np.asarray((self.margins > 0).sum(axis=1), np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The same bags captioned before and after, judged alike."""

    benchmark: Benchmark
    size: int
    judge: Scorer
    before: Answers
    after: Answers

    @property
    def change(self) -> RealArray:
        """(m,) float64, rise of each bag's summed margin."""
        return np.asarray(self.after.margins.sum(axis=1) - self.before.margins.sum(axis=1))

    def told_apart(self) -> list[int]:
        """Bags of the rule `TOLD_APART`, in its order; equals in the order of the benchmark."""
        fits = (self.after.right == self.size) & (2 * self.before.right < self.size)
        return [int(bag) for bag in np.argsort(-self.change, kind="stable") if fits[bag]]

    def still_failing(self) -> list[int]:
        """Bags of the rule `STILL_FAILING`, in its order."""
        order = np.argsort(self.after.margins.sum(axis=1), kind="stable")
        return [int(bag) for bag in order if self.after.right[bag] < self.size]

    def counts(self) -> dict[str, int]:
        """How many bags there are of which kind, better and worse."""
        before, after = self.before.right, self.after.right
        return {
            "bags": len(after),
            "all_right_before": int((before == self.size).sum()),
            "all_right_after": int((after == self.size).sum()),
            "more_right_after": int((after > before).sum()),
            "fewer_right_after": int((after < before).sum()),
            "told_apart": len(self.told_apart()),
            "still_failing": len(self.still_failing()),
        }

    def to_record(self, *, count: int) -> dict[str, Any]:
        """The examples as plain JSON values.

        Args:
            count: most bags of each kind.
        """
        return {
            "benchmark": {"name": self.benchmark.name, "sha256": self.benchmark.sha256},
            "judge": {"name": self.judge.name, "sha256": self.judge.sha256},
            "size": self.size,
            "ties": "strict",
            "counts": self.counts(),
            "rules": {"told_apart": TOLD_APART, "still_failing": STILL_FAILING},
            "told_apart": [self._bag(bag) for bag in self.told_apart()[:count]],
            "still_failing": [self._bag(bag) for bag in self.still_failing()[:count]],
        }

    def _bag(self, bag: int) -> dict[str, Any]:
        names = [image_name(image) for image in self.benchmark.bags[self.size][bag]]

        def told(answers: Answers, place: int) -> dict[str, Any]:
            return {
                "caption": answers.captions[bag][place],
                "finds": names[int(answers.finds[bag, place])],
                "margin": round(float(answers.margins[bag, place]), 4),
            }

        return {
            "bag": bag + 1,
            "before_right": int(self.before.right[bag]),
            "after_right": int(self.after.right[bag]),
            "change": round(float(self.change[bag]), 4),
            "images": [
                {"image": name, "before": told(self.before, place), "after": told(self.after, place)}
                for place, name in enumerate(names)
            ],
        }


def find_examples(
    before: Mapping[str, str],
    after: Mapping[str, str],
    *,
    benchmark: Benchmark,
    size: int,
    judge: Scorer,
    image_rows: Mapping[ImageId, EmbeddingArray],
) -> Examples:
    """Let a judge read both sets of captions of every bag of one size.

    Args:
        before: captions by image name.
        after: likewise.
        benchmark: the bags.
        size: of the bags.
        judge: reads the captions.
        image_rows: (d,) float32 unit rows of the images of these bags under the same judge.

    Raises:
        UsageError: the benchmark has no bags of this size.
        DataError: a caption is missing.
    """
    ids = bag_images(benchmark, size)
    row_of = {image: row for row, image in enumerate(ids)}
    bags = np.array([[row_of[image] for image in bag] for bag in benchmark.bags[size]], np.int64)
    images = np.stack([image_rows[image] for image in ids])
    answers = []
    for captions in (before, after):
        texts = captions_of(ids, captions)
        similarity = bag_similarity(judge.embed_texts(texts).cpu().numpy(), images, bags)
        answers.append(_read(similarity, [tuple(texts[row] for row in bag) for bag in bags]))
    return Examples(benchmark=benchmark, size=size, judge=judge, before=answers[0], after=answers[1])


def bag_images(benchmark: Benchmark, size: int) -> tuple[ImageId, ...]:
    """Every image of the bags of one size, once.

    Raises:
        UsageError: the benchmark has no bags of this size.
    """
    if size not in benchmark.bags:
        known = ", ".join(map(str, benchmark.bags))
        raise UsageError(f"{benchmark.folder} has no bags of {size}: choose --size out of {known}")
    return tuple(dict.fromkeys(image for bag in benchmark.bags[size] for image in bag))


def embed_bag_images(
    benchmark: Benchmark, size: int, judge: Scorer, images: ImageSource, *, cache: Path
) -> dict[ImageId, EmbeddingArray]:
    """Unit rows of the images of the bags of one size, kept in a cache folder.

    Raises:
        DataError: an image is missing or cannot be read.
    """
    ids = bag_images(benchmark, size)
    rows = judge.embed_images(images, [image_name(image) for image in ids], cache=cache)
    return dict(zip(ids, rows, strict=True))


def examples_page(record: Mapping[str, Any]) -> str:
    """The examples as Markdown: names of photos and captions, no photos.

    Args:
        record: of `Examples.to_record`.
    """
    counts, judge, size = record["counts"], record["judge"], record["size"]
    parts = [
        f"Of {counts['bags']} bags of {size} look-alikes, {counts['all_right_before']} had every caption "
        f"right before and {counts['all_right_after']} have after; in {counts['more_right_after']} more "
        f"captions are right than before, in {counts['fewer_right_after']} fewer. The judge is "
        f"`{judge['name']}` ({judge['sha256'][:12]}), ties are misses.",
    ]
    for kind, title in (("told_apart", "Told apart after"), ("still_failing", "Still failing")):
        shown = record[kind]
        parts += [
            "",
            f"### {title}",
            "",
            f"{len(shown)} of {counts[kind]} bags. Rule: {record['rules'][kind]}.",
        ]
        for bag in shown:
            parts += ["", *_bag_table(bag, size)]
    return "\n".join(parts) + "\n"


def _bag_table(bag: Mapping[str, Any], size: int) -> list[str]:
    lines = [
        f"Bag {bag['bag']}: {bag['before_right']} of {size} right before, {bag['after_right']} after.",
        "",
        "| photo | before | after |",
        "|---|---|---|",
    ]
    for image in bag["images"]:
        cells = [_cell(image["image"], image[when]) for when in ("before", "after")]
        lines.append(f"| `{image['image']}` | {cells[0]} | {cells[1]} |")
    return lines


def _cell(name: str, told: Mapping[str, Any]) -> str:
    """A caption, and the photo it found where that was another."""
    text = " ".join(str(told["caption"]).split()).replace("\\", "\\\\").replace("|", "\\|")
    return f"✓ {text}" if told["finds"] == name else f"✗ {text} (finds `{told['finds']}`)"


def _read(similarity: RealArray, captions: Sequence[tuple[str, ...]]) -> Answers:
    """Margins and finds of (m, k, k) cosines, axis 1 the caption, axis 2 the image."""
    ahead = np.stack([margins(bag) for bag in similarity])
    others = similarity.copy()
    places = np.arange(similarity.shape[1])
    others[:, places, places] = -np.inf
    finds = np.where(ahead > 0, places[None, :], others.argmax(axis=2))
    return Answers(captions=tuple(captions), finds=finds, margins=ahead)
