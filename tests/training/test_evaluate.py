"""Evaluation of the tiny bundle through the SDK (no torch), and of the toy checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tellapart.errors import DataError, UsageError
from tellapart_training.cli import main
from tellapart_training.evaluate import EvaluateOptions, evaluate
from tellapart_training.metrics import cider_d, metric_words

pytest.importorskip("onnxruntime")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def split(toy_images: dict[str, NDArray[np.uint8]], tmp_path: Path) -> tuple[Path, Path]:
    """Folder of the drawn pictures and a captions file, two captions each."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for name, pixels in toy_images.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
        colour = name.split("_")[0]
        captions = [f"a {colour} picture", f"the {colour} square ."]
        lines.append(json.dumps({"image": f"{name}.png", "split": "val", "captions": captions}))
    captions_file = tmp_path / "captions.jsonl"
    captions_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder, captions_file


def _options(files: tuple[Path, Path], bundle: Path, **more: Any) -> EvaluateOptions:
    return EvaluateOptions(images=files[0], captions=files[1], model=bundle, threads=1, **more)


def test_a_bundle_is_scored_through_the_sdk(
    split: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    report = evaluate(_options(split, tiny_bundle, captions_out=kept, out=tmp_path / "out" / "report.json"))
    lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"model": report.model["sha256"], "beams": report.model["beams"]}
    captions = [metric_words(line["caption"]) for line in lines[1:]]
    records = [json.loads(line) for line in split[1].read_text(encoding="utf-8").splitlines()]
    references = [[metric_words(text) for text in record["captions"]] for record in records]
    assert report.figures["cider_d"] == pytest.approx(np.mean(cider_d(captions, references)))
    assert report.figures["mean_words"] == pytest.approx(np.mean([len(words) for words in captions]))
    assert report.figures["text_to_image_r10"] == 1.0  # seven images
    assert report.data["images"] == len(records)
    stored = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert stored["cider_d"] == report.figures["cider_d"]
    assert "cider_d" in report.table()


def test_an_interrupted_evaluation_goes_on(
    split: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    whole = evaluate(_options(split, tiny_bundle, captions_out=kept))
    lines = kept.read_text(encoding="utf-8").splitlines()
    marked = json.dumps({**json.loads(lines[1]), "caption": "kept as it was"})
    kept.write_text("\n".join([lines[0], marked, lines[2], '{"image": "hal']), encoding="utf-8")
    evaluate(_options(split, tiny_bundle, captions_out=kept, resume=True))
    again = kept.read_text(encoding="utf-8").splitlines()
    assert again[1] == marked  # not made anew
    assert again[2:] == lines[2:]
    assert evaluate(_options(split, tiny_bundle, captions_out=kept)).figures == whole.figures
    kept.write_text('{"model": "other", "beams": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match="written by another model"):
        evaluate(_options(split, tiny_bundle, captions_out=kept, resume=True))


def test_a_limit_keeps_the_document_frequencies_of_the_split(
    split: tuple[Path, Path], tiny_bundle: Path
) -> None:
    report = evaluate(_options(split, tiny_bundle, limit=2))
    assert report.data["images"] == 2
    assert report.data["document_frequencies"] == 7


def test_wrong_requests_are_refused(split: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record of split 'test'"):
        evaluate(_options(split, tiny_bundle, split="test"))
    with pytest.raises(UsageError, match="not both"):
        _options(split, tiny_bundle, checkpoint=tmp_path)
    with pytest.raises(UsageError, match="--resume needs"):
        _options(split, tiny_bundle, resume=True)


def test_the_command_prints_a_table_or_json(
    split: tuple[Path, Path], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "evaluate",
        "--model",
        str(tiny_bundle),
        "--images",
        str(split[0]),
        "--captions",
        str(split[1]),
    ]
    assert main([*arguments, "--threads", "1"]) == 0
    assert "cider_d" in capsys.readouterr().out
    assert main([*arguments, "--threads", "1", "--json", "--beams", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["beams"] == 1


@pytest.mark.train
def test_a_checkpoint_is_scored_in_torch(toy_world: Path, tmp_path: Path) -> None:
    report = evaluate(
        EvaluateOptions(
            images=toy_world / "images",
            captions=toy_world / "captions.jsonl",
            split="train",
            checkpoint=toy_world / "init",
            beams=1,
            limit=6,
        )
    )
    assert report.model["kind"] == "checkpoint"
    assert set(report.figures) >= {"cider_d", "bleu_4", "rouge_l", "distinct_captions", "image_to_text_r1"}


def test_the_command_line_imports_no_torch() -> None:
    code = "import sys, tellapart_training.cli, tellapart_training.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=_environment()).returncode == 0


def _environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "sdk"), str(root / "training")])}
