"""`tellapart caption`: what goes where, what fails, and what a second run does."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart.captioner import Captioner
from tellapart.cli import main

COLOURS = {"blue": (5, 15, 240), "green": (10, 230, 20), "red": (250, 10, 10)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three flat pictures, one in a subfolder, and things that are not pictures."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, colour in COLOURS.items():
        place = folder / "sub" if name == "red" else folder
        Image.fromarray(np.full((24, 32, 3), colour, np.uint8)).save(place / f"{name}.png")
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def model(tiny_bundle: Path) -> list[str]:
    """The option that names the tiny bundle."""
    return ["--model", str(tiny_bundle)]


@pytest.fixture
def other_model(tiny_bundle: Path, tmp_path: Path) -> list[str]:
    """The same graphs under another name, which is another identity."""
    folder = tmp_path / "other"
    shutil.copytree(tiny_bundle, folder)
    page = json.loads((folder / "tellapart.json").read_text())
    page["name"] = "other"
    (folder / "tellapart.json").write_text(json.dumps(page))
    return ["--model", str(folder)]


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file by its path, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_lines_on_stdout_in_order_of_the_path(
    photos: Path, model: list[str], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(photos)
    assert main(["caption", str(photos), *model]) == 0
    out, err = capsys.readouterr()
    paths = [photos / "blue.png", photos / "green.png", photos / "sub" / "red.png"]
    with Captioner.open(tiny_bundle) as captioner:
        assert out.splitlines() == [f"{path}: {captioner.caption(path).text}" for path in paths]
    assert "3 captioned, 0 failed" in err
    assert files_below(photos) == before


def test_json_has_the_keys_of_the_contract(
    photos: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(photos / "blue.png"), *model, "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert set(record) == {"image", "caption", "mean_logprob", "confidence", "truncated", "elapsed_ms"}
    assert record["image"] == str(photos / "blue.png")
    assert "blue" in record["caption"]
    assert record["mean_logprob"] < 0
    assert set(record["elapsed_ms"]) >= {"preprocess", "vision", "decode"}
    assert err == ""


def test_n_best_and_the_other_options_reach_the_captioner(
    photos: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(photos / "blue.png")
    assert main(["caption", image, *model, "--json", "--n-best", "3", "--max-new-tokens", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["alternatives"]) == 2
    assert record["truncated"]
    assert len(record["caption"].split()) <= 2
    sampled = ["caption", image, *model, "--temperature", "2.0", "--seed"]
    texts = []
    for seed in ("1", "1", "2", "3", "4"):
        assert main([*sampled, seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_stream_gives_the_greedy_caption(
    photos: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(photos), *model, "--beams", "1"]) == 0
    greedy = capsys.readouterr().out
    assert main(["caption", str(photos), str(photos / "gone.png"), *model, "--stream"]) == 1
    out, err = capsys.readouterr()
    assert out == greedy
    assert "gone.png: UnreadableImageError" in err


def test_three_bad_files_among_a_hundred_are_named_and_the_rest_captioned(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hundred"
    folder.mkdir()
    rows = np.random.default_rng(3).integers(0, 256, (97, 12, 12, 3), dtype=np.uint8)
    for number, pixels in enumerate(rows):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    (folder / "a_text.jpg").write_text("this is no picture")
    (folder / "b_empty.png").write_bytes(b"")
    (folder / "c_cut.png").write_bytes((folder / "000.png").read_bytes()[:-60])
    out_file = tmp_path / "out.jsonl"
    assert main(["caption", str(folder), *model, "--jsonl", str(out_file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    records = [json.loads(line) for line in out_file.read_text().splitlines()]
    assert len(records) == 100
    failures = {Path(record["image"]).name: record["error"] for record in records if "error" in record}
    assert {name: error["type"] for name, error in failures.items()} == {
        "a_text.jpg": "UnreadableImageError",
        "b_empty.png": "UnreadableImageError",
        "c_cut.png": "TruncatedImageError",
    }
    for name, error in failures.items():
        assert f"{name}: {error['type']}: {error['message']}" in err
    assert "97 captioned, 3 failed" in err


def test_the_pixel_limit_can_be_set(
    photos: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(photos / "blue.png")  # 24 x 32 pixels
    assert main(["caption", image, *model, "--json", "--max-megapixels", "0.0007"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ImageTooLargeError"
    assert main(["caption", image, *model, "--max-megapixels", "0.0008"]) == 0


def test_a_folder_without_images_exits_2(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["caption", str(tmp_path / "empty"), *model]) == 2
    assert "no image in the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--resume"],
        ["--jsonl", "x.jsonl", "--resume", "--overwrite"],
        ["--json", "--stream"],
        ["--stream", "--n-best", "2"],
        ["--batch-size", "0"],
        ["--jsonl", "no/such/folder/x.jsonl"],
    ],
)
def test_options_that_make_no_sense_together_exit_2(
    options: list[str], photos: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    assert main(["caption", str(photos), *model, *options]) == 2
    assert files_below(tmp_path) == before


def test_jsonl_resumes_after_a_kill_in_the_middle_of_a_line(
    photos: Path, model: list[str], tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["caption", str(photos), *model, "--jsonl", str(out)]
    assert main(arguments) == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(lines[0] + lines[1][: len(lines[1]) // 2])
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0
    assert "1 of 3 images were done before" in capsys.readouterr().err
    again = out.read_bytes().splitlines(keepends=True)
    assert again[0] == lines[0]
    assert [json.loads(line)["caption"] for line in again] == [json.loads(line)["caption"] for line in lines]
    identity = hashlib.sha256((tiny_bundle / "tellapart.json").read_bytes()).hexdigest()
    assert {json.loads(line)["model"] for line in again} == {identity}
    # Nothing is left to do, and nothing is done.
    assert main([*arguments, "--resume"]) == 0
    assert out.read_bytes() == b"".join(again)


def test_jsonl_tries_failures_again(photos: Path, model: list[str], tmp_path: Path) -> None:
    out, late = tmp_path / "out.jsonl", photos / "late.png"
    late.write_bytes(b"half copied")
    arguments = ["caption", str(photos), *model, "--jsonl", str(out)]
    assert main(arguments) == 1
    shutil.copyfile(photos / "blue.png", late)
    assert main([*arguments, "--resume"]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(Path(record["image"]).name for record in records) == [
        "blue.png",
        "green.png",
        "late.png",
        "red.png",
    ]
    assert all("caption" in record for record in records)


def test_jsonl_is_never_replaced_or_mixed_unasked(
    photos: Path,
    model: list[str],
    other_model: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["caption", str(photos), "--jsonl", str(out)]
    assert main([*arguments, *model]) == 0
    before = out.read_bytes()
    assert main([*arguments, *model]) == 2
    assert main([*arguments, *other_model, "--resume"]) == 2
    assert "was made by the model" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*arguments, *other_model, "--overwrite"]) == 0
    assert out.read_bytes() != before
    # A file of somebody else's is not resumed, and an image is no place for captions.
    out.write_text("dear diary\n")
    assert main([*arguments, *model, "--resume"]) == 1
    assert out.read_text() == "dear diary\n"
    image = photos / "blue.png"
    pixels = image.read_bytes()
    assert main(["caption", str(photos), *model, "--jsonl", str(image), "--overwrite"]) == 2
    assert image.read_bytes() == pixels


def test_sidecars_lie_beside_and_resume_writes_only_what_is_missing(
    photos: Path, model: list[str], other_model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(photos)
    arguments = ["caption", str(photos), *model, "--sidecar", "txt"]
    assert main(arguments) == 0
    after = files_below(photos)
    assert {name: content for name, content in after.items() if name in before} == before
    assert set(after) - set(before) == {"blue.txt", "green.txt", "sub/red.txt"}
    assert "blue" in after["blue.txt"].decode().lower()
    # Edited by hand since: neither a second run nor a resumed one touches it.
    (photos / "blue.txt").write_text("my own words\n")
    (photos / "green.txt").unlink()
    assert main(arguments) == 2
    assert not (photos / "green.txt").exists()
    assert main([*arguments, "--resume"]) == 0
    assert (photos / "blue.txt").read_text() == "my own words\n"
    assert (photos / "green.txt").read_bytes() == after["green.txt"]
    assert main([*arguments, "--overwrite"]) == 0
    assert files_below(photos) == after
    # JSON sidecars know their model.
    assert main(["caption", str(photos), *model, "--sidecar", "json"]) == 0
    assert json.loads((photos / "blue.json").read_text())["image"] == str(photos / "blue.png")
    capsys.readouterr()
    assert main(["caption", str(photos), *other_model, "--sidecar", "json", "--resume"]) == 2
    assert "was not made by the model" in capsys.readouterr().err


def test_sidecars_that_would_collide_are_refused_before_the_first(
    photos: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(photos / "blue.png", photos / "blue.jpg")
    before = files_below(photos)
    assert main(["caption", str(photos), *model, "--sidecar", "txt"]) == 2
    assert "rename one" in capsys.readouterr().err
    # A picture that is called like a sidecar is an original all the same.
    picture = photos / "green.txt"
    shutil.copyfile(photos / "green.png", picture)
    assert main(["caption", str(picture), *model, "--sidecar", "txt", "--overwrite"]) == 2
    picture.unlink()
    assert files_below(photos) == before


def test_a_folder_that_cannot_be_written_is_one_line_and_leaves_nothing(
    photos: Path, model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    before = files_below(photos)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    assert main(["caption", str(photos), *model, "--sidecar", "txt"]) == 1
    assert "Permission denied" in capsys.readouterr().err
    assert files_below(photos) == before
