"""Presence fitted: chances that made the data come back, and a bundle gets its file and keeps the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from PIL import Image

from tellapart import Captioner
from tellapart.bundle import open_bundle
from tellapart.errors import DataError
from tellapart.presence import PRESENCE_NAME
from tellapart_training.data import CaptionRecord
from tellapart_training.presence import fit, frequent, main, nats, pieces_said, table

pytestmark = pytest.mark.train


def test_the_fit_finds_the_chances_that_made_the_data() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(4000, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    weights, bias = np.array([[0.6, 0, -0.4], [0, 0.5, 0]], np.float32), np.array([-1, 0.5], np.float32)
    chances = 1 / (1 + np.exp(-(rows @ weights.T + bias)))
    said = (generator.random(chances.shape) < chances).astype(np.float32)
    presence = fit(rows, said, np.array([5, 9]), ridge=1e-3)
    assert np.exp(presence.log_chances(rows)) == pytest.approx(chances, abs=0.04)
    assert presence.pieces.tolist() == [5, 9]
    strict = fit(rows, said, np.array([5, 9]), ridge=100.0)
    assert np.exp(strict.log_chances(rows)) == pytest.approx(
        np.broadcast_to(said.mean(axis=0), said.shape), abs=0.02
    )


def test_a_piece_counts_once_a_photo_and_only_where_it_is_frequent() -> None:
    said = [{4, 5}, {5}, {5, 6}, {6}]
    assert frequent(said, least=2).tolist() == [5, 6]
    assert table(said, np.array([5, 6])).tolist() == [[1, 0], [1, 0], [1, 1], [0, 1]]
    with pytest.raises(DataError, match="--least"):
        frequent(said, least=4)


def test_nats_are_those_of_all_pieces_said_or_not() -> None:
    chances = np.array([[0.25, 0.5], [0.5, 1.0]])
    found = nats(np.log(chances), np.array([[1, 0], [0, 1]], np.float32))
    assert found == pytest.approx((np.log(4) + np.log(2) + np.log(2)) / 2)


def test_marks_are_no_pieces(tiny_bundle: Path) -> None:
    with Captioner.open(tiny_bundle) as captioner:
        tokenizer = captioner._engine.tokenizer
        [pieces] = pieces_said([CaptionRecord("a.png", "", ("red", "red"))], tokenizer)
        assert pieces == set(tokenizer.encode("red")) - set(tokenizer.encode(""))
        assert len(pieces) == 1


def test_the_command_adds_the_file_and_keeps_the_others(
    tiny_bundle: Path, toy_images: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, photos = shutil.copytree(tiny_bundle, tmp_path / "bundle"), tmp_path / "photos"
    photos.mkdir()
    lines = []
    for number in range(12):
        name = "red" if number % 2 else "blue"
        Image.fromarray(toy_images[name]).save(photos / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "split": "train", "captions": [name]}))
    captions = tmp_path / "captions.jsonl"
    captions.write_text("\n".join(lines) + "\n")
    flags = ["--images", str(photos), "--captions", str(captions), "--tuning-images", "4", "--least", "2"]
    assert main([str(bundle), *flags, "--ridge", "1e-4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fitted_on"] == 8
    assert report["pieces"] == 2
    assert report["nats_held_back"] < report["nats_held_back_base_rates"]
    with open_bundle(bundle) as after, open_bundle(tiny_bundle) as before:
        assert set(after.manifest.files) == {*before.manifest.files, PRESENCE_NAME}
        assert all(after.manifest.files[path] == entry for path, entry in before.manifest.files.items())
        assert after.manifest.metrics["presence"] == report
    with Captioner.open(bundle) as captioner:
        presence = captioner._engine.presence()
        assert presence is not None
        rows = captioner.retriever.embed_images(
            [captioner.look(toy_images[name]) for name in ("red", "blue")]
        )
        red = presence.pieces.tolist().index(captioner._engine.tokenizer.encode("red")[1])
        chances = presence.log_chances(rows)[:, red]
        assert chances[0] > chances[1]
