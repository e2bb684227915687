"""Training bags: what is mined is written and read back, and a damaged file is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
from PIL import Image

from tellapart.errors import DataError, UsageError
from tellapart.retriever import Retriever
from tellapart_training.bags import (
    MineOptions,
    _means,
    mine_training_bags,
    read_training_bags,
)
from tellapart_training.cli import main
from tellapart_training.data import normalised_records, read_captions, split_records

pytestmark = pytest.mark.train


def test_the_command_writes_disjoint_bags_of_the_split(
    toy_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bags.json"
    status = main([
        "mine-bags", "--images", str(toy_world / "images"), "--captions", str(toy_world / "captions.jsonl"),
        "--scorer", str(toy_world / "init"), "--sizes", "2", "3", "--bands", "hard", "easy",
        "--out", str(out), "--near-duplicate", "1", "--cache", str(tmp_path / "cache"),
    ])  # fmt: skip
    assert status == 0
    counts = json.loads(capsys.readouterr().out)
    bags = read_training_bags(out)
    for band in ("hard", "easy"):
        for size in (2, 3):
            found = bags.of(band, size)
            names = [name for bag in found for name in bag]
            assert len(found) == counts[band][str(size)]["bags"] > 0
            assert len(names) == len(set(names)) == size * len(found)
            assert set(names) <= {f"{index}.png" for index in range(24)}
    with pytest.raises(DataError, match="no medium bags of 2"):
        bags.of("medium", 2)


def test_images_without_captions_give_bags_too_and_the_same_twice(toy_world: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("a.json", "b.json"):
        options = MineOptions(
            images=toy_world / "images", scorer=toy_world / "init", sizes=(3,), out=tmp_path / name,
            near_duplicate=1.0, cache=tmp_path / "cache",
        )  # fmt: skip
        mine_training_bags(options)
        pages.append((tmp_path / name).read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert json.loads(pages[0])["embedding"]["captions"] is False


@pytest.mark.parametrize(
    "bags", [{"hard": {"2": [["a.png"]]}}, {"hard": {"2": [["a.png", "a.png"]]}}, {"hard": []}, [], None]
)
def test_a_damaged_file_is_refused(tmp_path: Path, bags: object) -> None:
    path = tmp_path / "bags.json"
    path.write_text(json.dumps({"format": 1, "bags": bags}), encoding="utf-8")
    with pytest.raises(DataError, match="mine again"):
        read_training_bags(path)


def test_an_unknown_band_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="harder"):
        MineOptions(images=tmp_path, scorer=tmp_path, out=tmp_path / "x", bands=("harder",))  # type: ignore[arg-type]


def test_images_that_training_holds_back_are_in_no_bag(toy_world: Path, tmp_path: Path) -> None:
    records = normalised_records(read_captions(toy_world / "captions.jsonl"), min_words=2)
    _, held = split_records(records, train_splits=["train"], tuning_images=8, seed=5)
    options = MineOptions(
        images=toy_world / "images", captions=toy_world / "captions.jsonl", scorer=toy_world / "init",
        sizes=(2,), out=tmp_path / "bags.json", near_duplicate=1.0, cache=tmp_path / "cache",
        tuning_images=8, data_seed=5,
    )  # fmt: skip
    counts = mine_training_bags(options)
    assert counts["hard"]["2"]["images"] == 16
    mined = {name for bag in read_training_bags(tmp_path / "bags.json").of("hard", 2) for name in bag}
    assert mined
    assert mined.isdisjoint(record.image for record in held)
    with pytest.raises(DataError, match="24 of them to hold back"):
        mine_training_bags(dataclasses.replace(options, tuning_images=24))


def test_a_device_bundle_mines_the_bags_of_its_own_embedding(
    toy_images: dict[str, Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    for name, pixels in toy_images.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    options = MineOptions(
        images=folder, scorer=tiny_bundle, sizes=(2,), out=tmp_path / "bags.json", near_duplicate=1.0,
        cache=tmp_path / "cache",
    )  # fmt: skip
    mine_training_bags(options)
    names = sorted(f"{name}.png" for name in toy_images)
    with Retriever.open(tiny_bundle) as retriever:
        rows = retriever.embed_images([folder / name for name in names])
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1)
    first = read_training_bags(tmp_path / "bags.json").of("hard", 2)[0]
    pair = [names.index(name) for name in first]
    assert cosines[pair[0], pair[1]] == pytest.approx(cosines.max())


def test_captions_count_by_their_mean() -> None:
    rows = np.array([[1, 0], [0, 1], [0, 3]], np.float32)
    assert _means(rows, [["a", "b"], ["c"]]).tolist() == [[0.5, 0.5], [0.0, 3.0]]


def test_an_image_in_two_bags_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bags.json"
    page = {"format": 1, "bags": {"hard": {"2": [["a.png", "b.png"], ["c.png", "a.png"]]}}}
    path.write_text(json.dumps(page), encoding="utf-8")
    with pytest.raises(DataError, match="in two hard bags of 2"):
        read_training_bags(path)
