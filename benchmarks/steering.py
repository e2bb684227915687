"""What guidance and contrast buy and cost: bags of look-alike photos, several settings, one table.

    python benchmarks/steering.py --images ../shared/data/flickr8k/images.tar \
        --captions ../shared/data/flickr8k/captions.jsonl plain plain:guidance=1.5 contrast:weight=0.5

A setting is a mode of a bag and what differs from its defaults: fields of `DecodeOptions`, and of `Contrast`
in the mode contrast. CIDEr-D counts n-grams over the whole split. Who finds a photo by its caption is the
bundle's own retriever, which in `rerank` and `contrast` had a say in the caption: compare such rows with each
other only. `--judge` names a retriever checkpoint that had none, `--language-model` one of `train warmup` for
fluency. Runs where the training package is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tellapart import Captioner, DecodeOptions, RuntimeOptions, View
from tellapart.bag import bag_options, judge_bag, spoken_options
from tellapart.contrast import Contrast
from tellapart.plan import make_plan
from tellapart.similarity import hits_at_1
from tellapart.writer import write_contrast
from tellapart_training.images import ImageSource
from tellapart_training.metrics.cider import DocumentFrequencies, cider_d
from tellapart_training.metrics.fluency import LanguageModel, open_language_model
from tellapart_training.metrics.hallucination import object_hallucination
from tellapart_training.metrics.words import metric_words
from tellapart_training.scorer import Scorer, open_scorer

BENCHMARK = Path(__file__).parent / "flickr8k-val" / "benchmark" / "5.json"
AMONG = 100


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    text: str
    mode: str
    options: DecodeOptions
    contrast: Contrast

    @classmethod
    def parse(cls, text: str) -> Setting:
        """From "mode:field=number,..."."""
        mode, _, rest = text.partition(":")
        values: dict[str, Any] = {}
        for item in filter(None, rest.split(",")):
            name, _, number = item.partition("=")
            values[name] = int(number) if number.isdigit() else float(number)
        own = {field.name for field in fields(Contrast)} if mode == "contrast" else set()
        options = {name: value for name, value in values.items() if name not in own}
        steering = {name: value for name, value in values.items() if name in own}
        return cls(text, mode, DecodeOptions(confidence=False, **options), Contrast(**steering))


def captions_of(captioner: Captioner, views: list[View], setting: Setting) -> list[str]:
    """One bag's captions."""
    if setting.mode != "contrast":
        result = captioner.bag(views, mode=setting.mode, options=setting.options)  # type: ignore[arg-type]
        return [caption.text for caption in result.captions]
    engine = captioner._engine
    options = bag_options(setting.options, "contrast")
    plan = make_plan(options, captioner.bundle.manifest.decoding, engine.tokenizer)
    rows = captioner.retriever.embed_images(views)
    alone = make_plan(spoken_options(setting.options), captioner.bundle.manifest.decoding, engine.tokenizer)
    found = write_contrast(engine, rows, views, plan, setting.contrast, spoken=alone)
    embed_texts, presence = captioner.retriever.embed_texts, engine.presence()
    groups = found.beside_spoken(shorter=presence is not None)
    chosen = judge_bag(groups, rows, embed_texts, mode="contrast", spoken=found.spoken, presence=presence)
    return [caption.text for caption in chosen.captions]


def among_100(similarity: np.ndarray, draws: list[np.ndarray]) -> float:
    """Share of captions that find their photo among it and 99 others."""
    own = np.diag(similarity)
    return float(np.mean([(similarity[row, others] < own[row]).all() for row, others in enumerate(draws)]))


def read_references(path: Path, split: str) -> dict[str, list[list[str]]]:
    """Words of what people wrote, by photo."""
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {
        record["image"]: [metric_words(text) for text in record["captions"]]
        for record in records
        if record["split"] == split
    }


def measure(
    captioner: Captioner,
    settings: Iterable[Setting],
    bags: list[list[str]],
    source: ImageSource,
    references: dict[str, list[list[str]]],
    *,
    judge: Scorer | None,
    language_model: LanguageModel | None,
    cache: Path,
) -> None:
    """Print a row a setting."""
    frequencies = DocumentFrequencies.of_references(list(references.values()))
    names = [name for bag in bags for name in bag]
    views = {name: captioner.look(source.read(name)) for name in names}
    if judge is None:
        embed_texts, embeddings = (
            captioner.retriever.embed_texts,
            np.concatenate([views[name].embedding for name in names]),
        )
    else:
        embed_texts, embeddings = (
            lambda said: judge.embed_texts(said).numpy(),
            judge.embed_images(source, names, cache=cache),
        )
    draw = np.random.default_rng(0)
    draws = [
        draw.choice(np.delete(np.arange(len(names)), row), AMONG - 1, replace=False)
        for row in range(len(names))
    ]
    size = len(bags[0])
    print("| setting | CIDEr-D | CHAIR-i | fluency | words | R@1 of the bag | R@1 among 100 | ms a photo |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in settings:
        started_s = time.perf_counter()
        said = [
            text for bag in bags for text in captions_of(captioner, [views[name] for name in bag], setting)
        ]
        ms = (time.perf_counter() - started_s) * 1e3 / len(names)
        words = [metric_words(text) for text in said]
        wanted = [references[name] for name in names]
        similarity = embed_texts(said) @ embeddings.T
        fluency = f"{language_model.fluency(said):.2f}" if language_model else ""
        blocks = [slice(first, first + size) for first in range(0, len(names), size)]
        in_bag = np.mean([hits_at_1(similarity[block, block]).mean() for block in blocks])
        print(
            f"| {setting.text} | {np.mean(cider_d(words, wanted, frequencies=frequencies)):.3f} "
            f"| {object_hallucination(words, wanted).figures()['chair_i']:.3f} "
            f"| {fluency} | {np.mean([len(each) for each in words]):.1f} | {in_bag:.1%} "
            f"| {among_100(similarity, draws):.1%} | {ms:.1f} |",
            flush=True,
        )


def main() -> int:
    """Read the bags, look at their photos once, measure each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="+", type=Setting.parse, metavar="MODE:FIELD=NUMBER,...")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--bags", type=Path, default=BENCHMARK)
    parser.add_argument("--limit-bags", type=int)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--language-model", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/study/cache"))
    args = parser.parse_args()
    bags = json.loads(args.bags.read_text(encoding="utf-8"))[: args.limit_bags]
    references = read_references(args.captions, args.split)
    with Captioner.open(args.model, runtime=RuntimeOptions(threads=1)) as captioner:
        measure(
            captioner, args.settings, bags, ImageSource(args.images), references,
            judge=open_scorer(args.judge) if args.judge else None,
            language_model=open_language_model(args.language_model) if args.language_model else None,
            cache=args.cache,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
