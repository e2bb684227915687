"""Captions under several frozen retrievers: the reward's scorer, and judges that training never saw.

A reward can be raised without better captions by whatever its scorer likes; a judge with other weights, from
another start, does not share the liking. Every table therefore shows the same captions under both, and a row
of human captions under each. Retrieval counts equal images strictly against a caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.errors import DataError, UsageError
from tellapart.truematch import Benchmark, groups_recall, image_name, random_groups, score_size
from tellapart_training.images import ImageSource
from tellapart_training.metrics import DocumentFrequencies, cider_d, metric_words
from tellapart_training.metrics.fluency import LanguageModel, open_language_model
from tellapart_training.metrics.habits import habits
from tellapart_training.metrics.hallucination import ObjectList, object_hallucination
from tellapart_training.scorer import EmbeddingArray, Scorer, open_scorer

RowGroups = npt.NDArray[np.int64]
_GROUP = 100


@dataclass(frozen=True)
class Groups:
    """Which images a caption must find its own among, by name.

    Attributes:
        rd100: groups of 100 that one permutation was cut into; one smaller group where images are fewer.
        bags: look-alikes by bag size.
        left_out: bags of the benchmark, by size, that hold an image which is not scored.
        stored: whether `rd100` is the benchmark's own.
    """

    rd100: tuple[tuple[str, ...], ...]
    bags: Mapping[int, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    left_out: Mapping[int, int] = field(default_factory=dict)
    stored: bool = False

    @classmethod
    def of(cls, names: Sequence[str], benchmark: Benchmark | None, *, seed: int = 0) -> Groups:
        """Groups among the images that are scored.

        Args:
            names: images, each once.
            benchmark: its bags, and its groups of 100 where it stores them and one is whole among the images.
            seed: of the permutation where the benchmark has none.

        Raises:
            DataError: not a single bag of the benchmark is whole among the images.
        """
        known = set(names)
        groups = [tuple(map(image_name, group)) for group in (benchmark.rd100 if benchmark else ())]
        whole = tuple(group for group in groups if known.issuperset(group))
        drawn = random_groups(names, size=min(_GROUP, len(names)), seed=seed) if len(names) > 1 else ()
        rd100 = whole or tuple(tuple(map(str, group)) for group in drawn)
        bags, left_out = {}, {}
        for size, found in (benchmark.bags if benchmark else {}).items():
            named = [tuple(map(image_name, bag)) for bag in found]
            bags[size] = tuple(bag for bag in named if known.issuperset(bag))
            left_out[size] = len(named) - len(bags[size])
        if benchmark is not None and not any(bags.values()):
            raise DataError(
                f"no bag of {benchmark.folder} is whole among the {len(names)} images scored: "
                "give the images that the benchmark was built from, without --limit"
            )
        return cls(rd100, {size: found for size, found in bags.items() if found}, left_out, bool(whole))

    def rows(self, names: Sequence[str]) -> GroupRows:
        """The groups that are whole among some images, as places in `names`."""
        row_of = {name: row for row, name in enumerate(names)}

        def placed(groups: Sequence[tuple[str, ...]]) -> RowGroups:
            whole = [[row_of[name] for name in group] for group in groups if row_of.keys() >= set(group)]
            return np.array(whole, np.int64)

        bags = {size: placed(found) for size, found in self.bags.items()}
        return GroupRows(placed(self.rd100), {size: found for size, found in bags.items() if len(found)})


@dataclass(frozen=True)
class GroupRows:
    """Groups as rows: `rd100` (g, s) int64, `bags` by size (m, k) int64; none is empty but `rd100` may be."""

    rd100: RowGroups
    bags: Mapping[int, RowGroups]


def judge_captions(
    captions: Sequence[str], scorer: Scorer, image_rows: EmbeddingArray, groups: GroupRows, *, seed: int = 0
) -> dict[str, float]:
    """How well captions find their own images under one retriever.

    Args:
        captions: one for each image.
        scorer: embeds them.
        image_rows: (n, d) float32 unit rows under the same scorer, in the order of the captions.
        groups: what each caption's image is hidden among.
        seed: of the bootstrap.

    Returns:
        Shares in [0, 1]: `rd100` and its 95 % interval `rd100_low`, `rd100_high`, `rd100_r5`; `rd100_rank` is
        the mean place, 1 is best; for each size of bag `bags_3`, `bags_3_low`, `bags_3_high`, the interval
        from drawing whole bags. Ties are misses. And `own_cosine`, the mean cosine with the own image.
    """
    rows = scorer.embed_texts(captions).cpu().numpy()
    figures = {}
    if len(groups.rd100):
        found = groups_recall(rows, image_rows, groups.rd100, seed=seed)
        figures["rd100"] = found.recall_at_1.value
        figures["rd100_low"], figures["rd100_high"] = found.recall_at_1.low, found.recall_at_1.high
        figures["rd100_r5"], figures["rd100_rank"] = found.recall_at_5, found.mean_rank
    for size, bags in groups.bags.items():
        recall = score_size(rows, image_rows, bags, seed=seed).recall
        figures[f"bags_{size}"] = recall.value
        figures[f"bags_{size}_low"], figures[f"bags_{size}_high"] = recall.low, recall.high
    figures["own_cosine"] = float((rows * image_rows).sum(axis=1).mean())
    return figures


class Judges:
    """Scorers, groups and a language model, opened once for many sets of captions of the same images.

        judges = Judges.open({"scorer": path, "judge": other}, images=source, names=names, cache=folder,
                             benchmark=read_benchmark(bags), language_model=warmup)
        judges.figures(names, captions, references)["judge.judge.rd100"]

    Attributes:
        groups: what images are hidden among.
        scorers: by the names that figures carry.
    """

    def __init__(
        self,
        scorers: Mapping[str, tuple[Scorer, EmbeddingArray]],
        *,
        names: Sequence[str],
        groups: Groups,
        language_model: LanguageModel | None = None,
        frequencies: DocumentFrequencies | None = None,
        seed: int = 0,
    ) -> None:
        """Use `Judges.open`, or bring scorers with the unit rows (n, d) of the images, in their order."""
        self.groups, self.scorers = groups, {name: scorer for name, (scorer, _) in scorers.items()}
        self._image_rows = {name: rows for name, (_, rows) in scorers.items()}
        self._row_of = {name: row for row, name in enumerate(names)}
        self._language_model, self._frequencies, self._seed = language_model, frequencies, seed
        self._objects = ObjectList.load()

    @classmethod
    def open(
        cls,
        checkpoints: Mapping[str, Path],
        *,
        images: ImageSource,
        names: Sequence[str],
        cache: Path,
        benchmark: Benchmark | None = None,
        language_model: Path | None = None,
        frequencies: DocumentFrequencies | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> Judges:
        """Open checkpoints and embed the images under each, from the cache where they are there.

        Args:
            checkpoints: retriever checkpoints by the name that their figures shall carry.
            images: where the bytes are.
            names: all images that captions will be judged for, each once.
            cache: folder of pixels and embeddings.
            benchmark: bags, and stored groups of 100; None judges random groups alone.
            language_model: a `warmup` checkpoint for `fluency`.
            frequencies: of CIDEr-D; None counts over the references of each call.
            seed: of the groups of 100 where none are stored, and of intervals.
            device: of the networks.

        Raises:
            UsageError: an image twice.
            CheckpointError: a checkpoint that cannot be opened.
            DataError: an image is missing, or no bag is whole among the images.
        """
        if len(set(names)) < len(names):
            raise UsageError("an image comes twice: give each name once")
        groups = Groups.of(names, benchmark, seed=seed)
        scorers = {}
        for name, path in checkpoints.items():
            scorer = open_scorer(path, device=device)
            scorers[name] = (scorer, scorer.embed_images(images, names, cache=cache))
        language = None if language_model is None else open_language_model(language_model, device=device)
        return cls(
            scorers, names=names, groups=groups, language_model=language, frequencies=frequencies, seed=seed
        )

    def facts(self) -> dict[str, Any]:
        """What judged, for a report: hashes, and how many groups and bags were scored."""
        groups = self.groups
        return {
            "judges": {name: scorer.sha256 for name, scorer in self.scorers.items()},
            "language_model": self._language_model.sha256 if self._language_model else None,
            "ties": "strict",
            "rd100": {
                "groups": len(groups.rd100),
                "size": len(groups.rd100[0]) if groups.rd100 else 0,
                "stored": groups.stored,
            },
            "bags": {str(size): len(found) for size, found in groups.bags.items()},
            "bags_left_out": {str(size): count for size, count in groups.left_out.items()},
        }

    def figures(
        self,
        names: Sequence[str],
        captions: Sequence[str],
        references: Sequence[Sequence[str]] | None = None,
        *,
        cut: Sequence[bool] | None = None,
    ) -> dict[str, float]:
        """Everything there is to say about one set of captions.

        Args:
            names: the images captioned, of those that were opened, each once. Groups and bags count where all
                of their images are here.
            captions: one for each, in order, as the model wrote them.
            references: human captions of each image; None leaves out what needs them.
            cut: which captions came to no end; None where unknown.

        Returns:
            `judge.NAME.FIGURE` for each scorer and figure of `judge_captions`, `fluency`, the habits, and
            with references `cider_d`, `chair_i`, `chair_s`, `objects_named`.

        Raises:
            UsageError: no captions, lengths that differ, or an image that was not opened.
        """
        if not names or len(names) != len(captions) or len(set(names)) < len(names):
            raise UsageError(
                f"expected one caption for each of at least one image, got {len(captions)} for {len(names)}"
            )
        unknown = [name for name in names if name not in self._row_of]
        if unknown:
            raise UsageError(f"{len(unknown)} images were not opened, such as {unknown[0]!r}: open them all")
        rows = [self._row_of[name] for name in names]
        groups = self.groups.rows(names)
        figures: dict[str, float] = {}
        for name, scorer in self.scorers.items():
            judged = judge_captions(captions, scorer, self._image_rows[name][rows], groups, seed=self._seed)
            figures.update({f"judge.{name}.{figure}": value for figure, value in judged.items()})
        words = [metric_words(caption) for caption in captions]
        if references is not None:
            texts = [[metric_words(text) for text in of_image] for of_image in references]
            figures["cider_d"] = float(np.mean(cider_d(words, texts, frequencies=self._frequencies)))
            figures.update(object_hallucination(words, texts, objects=self._objects).figures())
        if self._language_model is not None:
            figures["fluency"] = self._language_model.fluency(captions)
        bags = {size: found.tolist() for size, found in groups.bags.items()}
        return {**figures, **habits(words, cut=cut, bags=bags)}
