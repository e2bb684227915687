"""The judge of sound text: corruptions, training on a toy grammar, and its folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tellapart.errors import CheckpointError  # noqa: E402
from tellapart_training.augment import keyed_generator  # noqa: E402
from tellapart_training.config import GrammarConfig  # noqa: E402
from tellapart_training.config_file import load_config  # noqa: E402
from tellapart_training.corruption import KINDS, corrupt, corrupt_by  # noqa: E402
from tellapart_training.grammar import load_grammar  # noqa: E402
from tellapart_training.grammar_stage import train_grammar  # noqa: E402

pytestmark = pytest.mark.train
CONFIG = Path(__file__).parents[2] / "training" / "configs" / "toy_grammar.toml"
WORDS = ["a", "small", "dog", "runs", "on", "green", "grass"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_corruption_does_what_it_is_called(kind: str) -> None:
    for seed in range(200):
        broken = corrupt_by(kind, WORDS, ["x", "y"], keyed_generator(seed))
        counts, before = Counter(broken), Counter(WORDS)
        if kind == "repeat":
            extra = len(broken) - len(WORDS)
            assert extra in {size * times for size in (1, 2, 3) for times in (1, 2, 3)}
            assert set(broken) == set(WORDS)
        elif kind == "remove":
            assert len(WORDS) - len(broken) in (1, 2, 3)
            assert any(WORDS[:n] + WORDS[n + len(WORDS) - len(broken) :] == broken for n in range(8))
        elif kind == "insert":
            assert len(broken) - len(WORDS) in (1, 2, 3)
            assert [word for word in broken if word not in ("x", "y")] == WORDS
        else:
            assert counts == before
        if kind == "swap":
            assert sum(one != other for one, other in zip(broken, WORDS, strict=True)) <= 6


def test_a_broken_caption_always_differs_and_depends_on_the_generator_alone() -> None:
    for seed in range(300):
        for words in (WORDS, ["dog", "dog"]):
            broken = corrupt(words, ["dog"], keyed_generator(seed))
            assert broken != words
            assert broken == corrupt(words, ["dog"], keyed_generator(seed))
    assert WORDS == ["a", "small", "dog", "runs", "on", "green", "grass"]


@pytest.fixture(scope="module")
def judge_run(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of captions that all follow one pattern."""
    root = tmp_path_factory.mktemp("grammar")
    lines = [
        {"image": f"{index}.png", "split": "train",
         "captions": [f"a {colour} {animal} {verb} on {place}" for verb in ("runs", "jumps")]}
        for index, (colour, animal, place) in enumerate(
            (colour, animal, place)
            for colour in ("red", "green", "blue", "small", "big")
            for animal in ("dog", "cat", "man", "ball")
            for place in ("grass", "snow")
        )
    ]  # fmt: skip
    captions = root / "captions.jsonl"
    captions.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    overrides = [
        f"run={root / 'run'}",
        f"init={toy_world / 'init'}",
        f"data.captions={captions}",
        "threads=1",
    ]
    config = load_config(CONFIG, stage="grammar", overrides=overrides)
    assert isinstance(config, GrammarConfig)
    train_grammar(config)
    return root / "run"


def test_the_judge_learns_to_tell_sound_from_broken(judge_run: Path) -> None:
    lines = [json.loads(line) for line in (judge_run / "metrics.jsonl").read_text().splitlines()]
    assert next(line for line in lines if line["kind"] == "evaluation")["accuracy"] > 0.8
    judge = load_grammar(judge_run / "last", device=torch.device("cpu"))
    sound = judge.probability(["A red dog runs on snow.", "a big man jumps on grass"])
    broken = judge.probability(["dog dog dog a red runs", "snow on runs a"])
    assert sound.dtype == torch.float32
    assert float(sound.min()) > 0.5 > float(broken.max())


def test_a_changed_or_absent_judge_is_refused(judge_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no whole grammar judge"):
        load_grammar(tmp_path, device=torch.device("cpu"))
    for file in (judge_run / "last").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocab\.txt is not the file that was saved"):
        load_grammar(tmp_path, device=torch.device("cpu"))
