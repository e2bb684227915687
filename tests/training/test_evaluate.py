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

from tellapart import Captioner, DecodeOptions
from tellapart.errors import DataError, UsageError
from tellapart.truematch import write_benchmark
from tellapart_training.cli import main
from tellapart_training.evaluate import EvaluateOptions, evaluate
from tellapart_training.metrics import DocumentFrequencies, cider_d, metric_words

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


def test_guidance_reaches_the_captions_of_a_bundle(
    split: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.jsonl"
    arguments = ["evaluate", "--model", str(tiny_bundle), "--images", str(split[0]), "--threads", "1",
                 "--captions", str(split[1]), "--captions-out", str(kept), "--beams", "1"]  # fmt: skip
    assert main([*arguments, "--guidance", "4"]) == 0
    assert "beams 1, guidance 4" in capsys.readouterr().out
    head, *lines = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert head["guidance"] == 4.0
    with Captioner.open(tiny_bundle) as captioner:
        paths = [split[0] / line["image"] for line in lines]
        guided, plain = (
            [
                captioner.caption(path, options=DecodeOptions(beams=1, guidance=guidance)).text
                for path in paths
            ]
            for guidance in (4.0, 1.0)
        )
    assert [line["caption"] for line in lines] == guided != plain
    with pytest.raises(DataError, match="other beams or guidance"):
        main([*arguments, "--resume"])
    assert main([*arguments, "--resume", "--guidance", "4"]) == 0


def _names_and_references(captions_file: Path) -> tuple[list[str], list[list[str]]]:
    records = [json.loads(line) for line in captions_file.read_text(encoding="utf-8").splitlines()]
    return [record["image"] for record in records], [record["captions"] for record in records]


def test_captions_of_any_origin_are_scored_without_a_model_or_images(
    split: tuple[Path, Path], tmp_path: Path
) -> None:
    names, references = _names_and_references(split[1])
    own = tmp_path / "own.json"
    own.write_text(json.dumps({name: texts[0] for name, texts in zip(names, references, strict=True)}))
    report = evaluate(EvaluateOptions(captions=split[1], captions_file=own))
    words = [[metric_words(text) for text in texts] for texts in references]
    assert report.figures["cider_d"] == pytest.approx(np.mean(cider_d([each[0] for each in words], words)))
    assert report.figures["chair_i"] == 0.0
    assert (report.model["kind"], report.model["name"]) == ("captions", "own.json")
    assert {"cut", "text_to_image_r1"}.isdisjoint(report.figures)
    assert "beams" not in report.table()
    own.write_text(json.dumps({names[0]: "a dog"}))
    with pytest.raises(DataError, match=r"6 of 7 images have no caption"):
        evaluate(EvaluateOptions(captions=split[1], captions_file=own))


def test_kept_captions_of_a_model_score_as_when_they_were_written(
    split: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    written = evaluate(_options(split, tiny_bundle, captions_out=kept)).figures
    read = evaluate(EvaluateOptions(captions=split[1], captions_file=kept)).figures
    assert read == {name: written[name] for name in read}
    assert "cut" in read
    lines = kept.read_text(encoding="utf-8").splitlines()
    marked = json.dumps({**json.loads(lines[1]), "cut": True})
    kept.write_text("\n".join([lines[0], marked, *lines[2:]]) + "\n", encoding="utf-8")
    again = evaluate(EvaluateOptions(captions=split[1], captions_file=kept)).figures
    assert again["cut"] == pytest.approx(written["cut"] + 1 / 7)
    kept.write_text('{"image": "red.png"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"kept\.jsonl:1"):
        evaluate(EvaluateOptions(captions=split[1], captions_file=kept))


def test_the_human_row_is_one_caption_against_the_others(split: tuple[Path, Path], tmp_path: Path) -> None:
    names, references = _names_and_references(split[1])
    words = [[metric_words(text) for text in texts] for texts in references]
    frequencies = DocumentFrequencies.of_references(words)  # of all references, as for every model
    expected = cider_d([each[1] for each in words], [each[:1] for each in words], frequencies=frequencies)
    report = evaluate(EvaluateOptions(captions=split[1], human=2))
    assert report.figures["cider_d"] == pytest.approx(np.mean(expected))
    assert (report.model["kind"], report.data["references"]) == ("human", 7)
    same = tmp_path / "same.json"
    same.write_text(json.dumps({name: texts[1] for name, texts in zip(names, references, strict=True)}))
    on_equal_terms = evaluate(EvaluateOptions(captions=split[1], captions_file=same, leave_out=2))
    assert on_equal_terms.figures == report.figures
    with pytest.raises(DataError, match="no image has a caption number 3"):
        evaluate(EvaluateOptions(captions=split[1], human=3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"human": 1, "checkpoint": Path("x")}, "not both"),
        ({"human": 1, "captions_out": Path("x")}, "no model runs"),
        ({"human": 1, "leave_out": 1}, "drop --leave-out"),
        ({"human": 1, "judges": {"a": Path("x")}}, "give --images"),
        ({}, "give --images"),
        ({"human": -1}, "at least 0"),
        ({"human": 1, "guidance": 1.5}, "--guidance steers a device bundle"),
        ({"checkpoint": Path("x"), "images": Path("x"), "guidance": 1.5}, "export the checkpoint"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        EvaluateOptions(captions=Path("captions.jsonl"), **options)


@pytest.mark.parametrize("judge", ["plain", "=x", "a=", "a.b=x"])
def test_a_judge_has_a_name_and_a_checkpoint(judge: str) -> None:
    with pytest.raises(UsageError, match="NAME=CHECKPOINT"):
        main(["evaluate", "--captions", "x", "--images", "x", "--judge", judge])


@pytest.mark.train
def test_judges_bags_and_fluency_come_through_the_command(
    toy_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_benchmark(tmp_path / "bench", bags={3: [["0.png", "1.png", "2.png"], ["5.png", "9.png", "7.png"]]})
    arguments = [
        "evaluate", "--human", "1", "--images", str(toy_world / "images"), "--split", "train",
        "--captions", str(toy_world / "captions.jsonl"), "--judge", f"one={toy_world / 'init'}",
        "--judge", f"two={toy_world / 'init'}", "--benchmark", str(tmp_path / "bench"),
        "--fluency", str(toy_world / "init"), "--cache", str(tmp_path / "cache"), "--threads", "1", "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    for name in ("one", "two"):
        assert report[f"judge.{name}.bags_3_low"] <= report[f"judge.{name}.bags_3"]
        assert 0 <= report[f"judge.{name}.rd100"] <= report[f"judge.{name}.rd100_r5"] <= 1
    assert report["judge.one.rd100"] == report["judge.two.rd100"]  # one checkpoint under two names
    assert report["fluency"] < 0
    assert report["distinct_in_bags"] == 1.0
    assert report["data"]["judged"]["bags"] == {"3": 2}
    assert set(report["data"]["judged"]["judges"]) == {"one", "two"}


@pytest.mark.train
@pytest.mark.parametrize("beams", [1, 3])
def test_a_caption_without_an_end_is_said_to_be_cut(toy_world: Path, beams: int) -> None:
    torch = pytest.importorskip("torch")
    from tellapart_model.config import END_ID
    from tellapart_training.captioning import write_captions
    from tellapart_training.pair import no_image, open_pair

    pair = open_pair(toy_world / "init")
    cross_kv = no_image(pair, 2, torch.device("cpu"))
    with torch.no_grad():
        pair.network.decoder.logit_bias[END_ID] = -1e4  # never ends
        cut = write_captions(pair, cross_kv, beams=beams, max_new_tokens=4)
        pair.network.decoder.logit_bias[END_ID] = 1e4  # ends at once
        whole = write_captions(pair, cross_kv, beams=beams, max_new_tokens=4)
    assert [caption.cut for caption in cut] == [True, True]
    assert [caption.cut for caption in whole] == [False, False]


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
