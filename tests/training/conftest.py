"""A toy world for training tests: 24 noise images, five captions each, and the toy pair's checkpoint."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tellapart_training.boost.parsing import SpacyParser

WORDS = [
    "a",
    "red",
    "dog",
    "cat",
    "runs",
    "jumps",
    "on",
    "grass",
    "snow",
    "green",
    "blue",
    "man",
    "with",
    "ball",
    "left",
    "small",
    "big",
]


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `init/` (checkpoint), `images/` and `captions.jsonl`."""
    torch = pytest.importorskip("torch")
    import numpy as np
    from PIL import Image

    from tellapart_model.checkpoint import save_checkpoint
    from tellapart_model.compact import CompactPair
    from tellapart_model.config import CompactConfig

    root = tmp_path_factory.mktemp("toy")
    (root / "images").mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    vocabulary += [f"x{index}" for index in range(64 - len(vocabulary))]
    torch.manual_seed(0)
    save_checkpoint(root / "init", CompactPair(CompactConfig.toy()), vocabulary=vocabulary)
    pixels, words = np.random.default_rng(0), random.Random(0)
    lines = []
    for index in range(24):
        image = pixels.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{index}.png")
        captions = [" ".join(words.choices(WORDS, k=5)) for _ in range(5)]
        lines.append(json.dumps({"image": f"{index}.png", "split": "train", "captions": captions}))
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def toy_settings(toy_world: Path, tmp_path: Path) -> list[str]:
    """`--set` arguments that point a toy config at the toy world and at a fresh run folder."""
    settings = {
        "run": tmp_path / "run",
        "init": toy_world / "init",
        "threads": 1,
        "data.captions": toy_world / "captions.jsonl",
        "data.images": toy_world / "images",
        "data.cache": tmp_path / "cache",
    }
    return [f"{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="session")
def caption_parser() -> SpacyParser:
    """The small English pipeline of spaCy, opened once."""
    pytest.importorskip("spacy")
    from tellapart_training.boost.parsing import SpacyParser

    return SpacyParser()
