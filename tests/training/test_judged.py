"""Judges against oracles whose figures are known beforehand, and opened for real on the toy world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tellapart.errors import DataError, UsageError  # noqa: E402
from tellapart.truematch import Benchmark, random_groups, read_benchmark, write_benchmark  # noqa: E402
from tellapart_training.images import ImageSource  # noqa: E402
from tellapart_training.judged import Groups, Judges  # noqa: E402
from tellapart_training.scorer import open_scorer  # noqa: E402

pytestmark = pytest.mark.train

NAMES = [f"{index}.png" for index in range(24)]
BAGS = {3: [NAMES[0:3], NAMES[3:6], NAMES[6:9]], 5: [NAMES[0:5]]}


class Oracle:
    """A scorer for which the text "7" is exactly the embedding of image 7."""

    name, sha256 = "oracle", "0" * 64

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def embed_texts(self, texts: Sequence[str]) -> Any:
        return torch.from_numpy(self._rows[[int(text) for text in texts]])


@pytest.fixture
def rows() -> Any:
    found = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    return write_benchmark(tmp_path / "bench", bags=BAGS)


def _judges(scorers: dict[str, Any], benchmark: Benchmark | None = None) -> Judges:
    return Judges(scorers, names=NAMES, groups=Groups.of(NAMES, benchmark))


def test_an_oracle_finds_all_and_its_neighbour_none(rows: Any, benchmark: Benchmark) -> None:
    judges = _judges({"reward": (Oracle(rows), rows)}, benchmark)
    figures = judges.figures(NAMES, [str(row) for row in range(24)])
    assert figures["judge.reward.rd100"] == figures["judge.reward.bags_3"] == 1.0
    assert figures["judge.reward.bags_3_low"] == figures["judge.reward.bags_5_high"] == 1.0
    assert figures["judge.reward.rd100_rank"] == 1.0
    assert figures["judge.reward.own_cosine"] == pytest.approx(1.0)
    # Every caption is its neighbour's inside the bag, but for the last of each, whose neighbour is outside.
    figures = judges.figures(NAMES, [str((row + 1) % 24) for row in range(24)])
    assert figures["judge.reward.rd100"] == 0.0
    assert figures["judge.reward.bags_3"] <= 1 / 3


def test_one_judge_is_fooled_and_the_other_is_not(rows: Any, benchmark: Benchmark) -> None:
    other = np.roll(rows, 1, axis=0)  # its image 0 looks like the first one's image 23
    judges = _judges({"reward": (Oracle(rows), rows), "judge": (Oracle(rows), other)}, benchmark)
    figures = judges.figures(NAMES, [str(row) for row in range(24)])
    assert figures["judge.reward.rd100"] == 1.0
    assert figures["judge.judge.rd100"] == 0.0


def test_equal_images_are_never_told_apart(benchmark: Benchmark) -> None:
    same = np.ones((24, 4), np.float32) / 2
    figures = _judges({"j": (Oracle(same), same)}, benchmark).figures(NAMES, ["0"] * 24)
    assert (figures["judge.j.rd100"], figures["judge.j.bags_3"], figures["judge.j.rd100_rank"]) == (0, 0, 24)


def test_some_images_are_scored_in_the_groups_that_they_fill(rows: Any, benchmark: Benchmark) -> None:
    judges = _judges({"j": (Oracle(rows), rows)}, benchmark)
    captions = ["0", "1", "2", "4", "3", "5"]  # the second bag has two swapped
    figures = judges.figures(NAMES[:6], captions)
    assert figures["judge.j.bags_3"] == pytest.approx(4 / 6)
    assert figures["judge.j.bags_5"] == pytest.approx(3 / 5)
    assert "judge.j.rd100" not in figures  # its one group is not whole
    assert figures["distinct_in_bags"] == 1.0
    figures = judges.figures(NAMES[3:6], ["3", "3", "5"])
    assert figures["distinct_in_bags"] == figures["judge.j.bags_3"] == pytest.approx(2 / 3)


def test_text_figures_need_references(rows: Any) -> None:
    judges = _judges({"j": (Oracle(rows), rows)})
    figures = judges.figures(NAMES[:2], ["0", "1"], [["a dog"], ["1"]], cut=[True, False])
    assert figures["cut"] == 0.5
    assert figures["chair_i"] == 0.0
    assert "fluency" not in figures
    assert {"cider_d", "chair_s"}.isdisjoint(judges.figures(NAMES[:2], ["0", "1"]))


def test_stored_groups_are_used_and_others_are_drawn_by_seed(tmp_path: Path) -> None:
    names = [f"{index:03}.png" for index in range(250)]
    stored = [names[100:200], names[0:100]]
    write_benchmark(tmp_path / "b", bags={3: [names[:3]]}, rd100=stored)
    groups = Groups.of(names, read_benchmark(tmp_path / "b"))
    assert groups.stored
    assert [list(group) for group in groups.rd100] == stored
    drawn = Groups.of(names, None, seed=4)
    assert not drawn.stored
    assert drawn.rd100 == random_groups(names, seed=4)
    assert [len(group) for group in drawn.rd100] == [100, 100]  # fifty are left over
    assert drawn.rd100 == Groups.of(names[::-1], None, seed=4).rd100


def test_published_numbers_stand_for_the_files_of_coco(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "b", bags={3: [[1, 2, 3]]})
    names = [f"COCO_val2014_{index:012d}.jpg" for index in (3, 2, 1)]
    groups = Groups.of(names, read_benchmark(tmp_path / "b"))
    assert groups.rows(names).bags[3].tolist() == [[2, 1, 0]]


def test_bags_with_images_that_are_not_scored_are_left_out_and_counted(benchmark: Benchmark) -> None:
    groups = Groups.of(NAMES[:6], benchmark)
    assert (len(groups.bags[3]), groups.left_out) == (2, {3: 1, 5: 0})
    with pytest.raises(DataError, match="no bag of"):
        Groups.of(NAMES[20:], benchmark)


def test_wrong_calls_are_refused(rows: Any) -> None:
    judges = _judges({"j": (Oracle(rows), rows)})
    for names, captions in (([], []), (NAMES[:2], ["0"]), ([NAMES[0]] * 2, ["0", "1"])):
        with pytest.raises(UsageError, match="one caption for each"):
            judges.figures(names, captions)
    with pytest.raises(UsageError, match="not opened"):
        judges.figures(["other.png"], ["0"])


def test_checkpoints_are_opened_once_for_many_sets(
    toy_world: Path, tmp_path: Path, benchmark: Benchmark
) -> None:
    lines = (toy_world / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    records = {entry["image"]: entry["captions"] for entry in map(json.loads, lines)}
    judges = Judges.open(
        {"reward": toy_world / "init", "judge": toy_world / "init"},
        images=ImageSource(toy_world / "images"), names=NAMES, cache=tmp_path / "cache",
        benchmark=benchmark, language_model=toy_world / "init",
    )  # fmt: skip
    figures = [
        judges.figures(NAMES, [records[name][turn] for name in NAMES], [records[name][1:] for name in NAMES])
        for turn in (0, 1)
    ]
    assert set(figures[0]) == {
        *(f"judge.{name}.{figure}" for name in ("reward", "judge") for figure in (
            "rd100", "rd100_low", "rd100_high", "rd100_r5", "rd100_rank", "own_cosine",
            "bags_3", "bags_3_low", "bags_3_high", "bags_5", "bags_5_low", "bags_5_high",
        )),
        "cider_d", "chair_i", "chair_s", "objects_named", "fluency", "mean_words", "vocabulary_used",
        "distinct_captions", "repeated_words", "distinct_in_bags",
    }  # fmt: skip
    assert figures[1]["cider_d"] > figures[0]["cider_d"]  # the second set is among its references
    facts = judges.facts()
    assert facts["bags"] == {"3": 3, "5": 1}
    assert facts["rd100"] == {"groups": 1, "size": 24, "stored": False}
    assert facts["judges"]["judge"] == judges.scorers["judge"].sha256
    with pytest.raises(UsageError, match="twice"):
        Judges.open({}, images=ImageSource(toy_world / "images"), names=["0.png", "0.png"], cache=tmp_path)


def test_images_are_embedded_once_and_the_wait_is_seen(
    toy_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tellapart_training.scorer.PROGRESS_IMAGES", 8)
    scorer, source = open_scorer(toy_world / "init"), ImageSource(toy_world / "images")
    names = source.names()[:12]
    first = scorer.embed_images(source, names, cache=tmp_path, batch_size=4)
    assert "init: embedded 8 of 12 images" in capsys.readouterr().err
    assert np.array_equal(scorer.embed_images(source, names, cache=tmp_path), first)
    assert "embedded" not in capsys.readouterr().err
