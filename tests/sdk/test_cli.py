"""The command line as a whole: statuses, streams, verbs of other packages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tellapart.cli import main
from tellapart.errors import BudgetError, ConfigError

SDK = Path(__file__).parents[2] / "sdk"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three flat pictures that the tiny bundle tells apart."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("blue", (5, 15, 240)), ("green", (10, 230, 20)), ("red", (250, 10, 10))):
        Image.fromarray(np.full((24, 32, 3), colour, np.uint8)).save(folder / f"{name}.png")
    return folder


def run_process(*arguments: str) -> subprocess.Popen[str]:
    """The command as a process of its own, which Ctrl-C stops even where the tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "tellapart", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SDK), "OMP_NUM_THREADS": "1"},
        # A shell starts what it puts in the background with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("arguments", [[], ["paint"], ["caption"], ["caption", "x.jpg", "--beams", "many"]])
def test_wrong_arguments_exit_2_with_usage_on_stderr(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: tellapart")


def test_help_lists_every_verb_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    ours = ["caption", "bag", "search", "bench", "info", "verify", "doctor"]
    verbs = [*ours, "export", "quantize", "train", "evaluate"]
    assert [verb for verb in verbs if f"    {verb} " not in out] == []


def test_a_value_out_of_range_exits_2_and_names_the_field(
    photos: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(photos), "--model", str(tiny_bundle), "--beams", "0"]) == 2
    assert "UsageError: beams must be" in capsys.readouterr().err


def test_a_damaged_bundle_exits_1_before_anything_is_captioned(
    photos: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    content = bytearray((broken / "vocab.txt").read_bytes())
    content[5] ^= 1
    (broken / "vocab.txt").write_bytes(content)
    for arguments in (["caption", str(photos)], ["info"], ["verify"]):
        assert main([*arguments, "--model", str(broken)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "BundleIntegrityError" in err
        assert "vocab.txt" in err


def test_bag_prints_ranks_and_the_json_of_the_contract(
    photos: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bag", str(photos), "--model", str(tiny_bundle), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert set(page) == {"images", "captions", "recall_at_1", "similarity"}
    assert page["images"] == [str(photos / name) for name in ("blue.png", "green.png", "red.png")]
    assert [set(item) for item in page["captions"]] == [{"image", "caption", "rank", "margin"}] * 3
    assert [item["rank"] for item in page["captions"]] == [1, 1, 1]
    assert "blue" in page["captions"][0]["caption"]
    # The margin by hand: own cosine less the best other one of the row.
    for own, row in enumerate(page["similarity"]):
        others = [value for column, value in enumerate(row) if column != own]
        assert page["captions"][own]["margin"] == pytest.approx(row[own] - max(others), abs=1e-5)
    assert main(["bag", str(photos), "--model", str(tiny_bundle), "--mode", "plain"]) == 0
    assert "rank 1 of 3" in capsys.readouterr().out


def test_a_bag_of_one_image_exits_2(
    photos: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bag", str(photos / "red.png"), "--model", str(tiny_bundle)]) == 2
    assert "at least two images" in capsys.readouterr().err


def test_bag_writes_its_page_and_never_over_an_image(
    photos: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "bag.html"
    assert main(["bag", str(photos), "--model", str(tiny_bundle), "--html", str(page)]) == 0
    assert page.read_text().count("<figure>") == 3
    before = (photos / "red.png").read_bytes()
    assert main(["bag", str(photos), "--model", str(tiny_bundle), "--html", str(photos / "red.png")]) == 2
    assert (photos / "red.png").read_bytes() == before


def test_search_finds_by_colour_and_looks_once(
    photos: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["search", str(photos), "a red field", "--model", str(tiny_bundle), "--top", "2"]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    page = json.loads(out)
    assert Path(page["matches"][0]["image"]).name == "red.png"
    assert len(page["matches"]) == 2
    assert "3 images looked at" in err
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].endswith("red.png")
    assert "looked at" not in err


def test_search_names_what_it_could_not_look_at(
    photos: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (photos / "broken.jpg").write_bytes(b"not an image")
    assert main(["search", str(photos), "red", "--model", str(tiny_bundle)]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert "broken.jpg" in err


def test_info_tells_the_identity_and_verify_runs_the_graphs(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    identity = hashlib.sha256((tiny_bundle / "tellapart.json").read_bytes()).hexdigest()
    assert main(["info", str(tiny_bundle)]) == 0
    assert identity in capsys.readouterr().out
    assert main(["info", str(tiny_bundle), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert (page["model"], page["manifest"]["name"]) == (identity, "tiny")
    assert main(["verify", str(tiny_bundle), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["model"] == identity
    assert sorted(page["graphs"]) == ["decoder", "text", "vision"]
    assert main(["info", str(tiny_bundle), "--model", str(tiny_bundle)]) == 2


def test_info_of_the_embedded_bundle_fits_a_screen_and_tells_all_when_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 30
    assert "int8 val: cider_d 0.6" in short
    assert main(["info", "--verbose"]) == 0
    whole = capsys.readouterr().out
    assert "source      family = compact" in whole
    assert "--verbose" not in whole


def test_without_a_verb_the_list_of_them_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "caption look-alike images" in err


def test_every_verb_of_the_sdk_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("caption", "bag", "search", "truematch", "bench", "info", "verify", "doctor"):
        assert main([verb, "--help"]) == 0
        said = capsys.readouterr().out.split("\n\n")[1]  # after the usage
        assert len(said) > 60, verb
        assert said.split(":")[0] not in ("options", "positional arguments"), verb


def test_a_mistyped_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capton", "photo.jpg"]) == 2
    assert "did you mean `tellapart caption`?" in capsys.readouterr().err
    assert main(["xyzzy"]) == 2
    assert "invalid choice" in capsys.readouterr().err


def test_verify_refuses_a_shape_that_the_graph_does_not_have(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    liar = tmp_path / "liar"
    shutil.copytree(tiny_bundle, liar)
    page = json.loads((liar / "tellapart.json").read_text())
    text = next(graph for graph in page["graphs"] if graph["role"] == "text")
    text["outputs"][0]["shape"][-1] += 1
    (liar / "tellapart.json").write_text(json.dumps(page))
    assert main(["verify", str(liar)]) == 1
    assert "export the bundle again" in capsys.readouterr().err


def fake_package(monkeypatch: pytest.MonkeyPatch, name: str, answer: object) -> None:
    """A package whose `cli.main` is `answer`."""
    module = ModuleType(f"{name}.cli")
    module.main = answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, f"{name}.cli", module)


@pytest.mark.parametrize(
    ("verb", "package", "given"),
    [
        ("export", "tellapart_export", ["folder", "--out", "x", "--help"]),
        ("quantize", "tellapart_quantization", ["folder", "--out", "x", "--help"]),
        ("train", "tellapart_training", ["train", "folder", "--out", "x", "--help"]),
        ("evaluate", "tellapart_training", ["evaluate", "folder", "--out", "x", "--help"]),
    ],
)
def test_verbs_of_other_packages_get_their_arguments_untouched(
    verb: str, package: str, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def answer(argv: list[str]) -> int:
        seen.append(argv)
        return 1

    fake_package(monkeypatch, package, answer)
    assert main([verb, "folder", "--out", "x", "--help"]) == 1
    assert seen == [given]


def test_a_missing_dependency_is_one_sentence_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    fake_package(monkeypatch, "tellapart_export", answer)
    assert main(["export", "checkpoint"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "torch" in err
    assert 'pip install "tellapart[export]"' in err


def test_a_missing_module_of_ours_is_not_passed_off_as_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named", name="tellapart_export.parity")

    fake_package(monkeypatch, "tellapart_export", answer)
    with pytest.raises(ModuleNotFoundError):
        main(["export"])


@pytest.mark.parametrize(("error", "status"), [(BudgetError("recall fell"), 1), (ConfigError("no key"), 2)])
def test_errors_of_other_packages_keep_the_statuses(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(argv: list[str]) -> int:
        raise error

    fake_package(monkeypatch, "tellapart_quantization", answer)
    assert main(["quantize"]) == status
    assert str(error) in capsys.readouterr().err


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, tellapart.cli; "
        "print([name for name in ('PIL', 'onnxruntime', 'tellapart.captioner', 'tellapart.backends') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SDK)},
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_reader_that_goes_away_is_no_traceback(photos: Path, tiny_bundle: Path) -> None:
    process = run_process("caption", str(photos), "--model", str(tiny_bundle))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 141
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_stops_at_once_and_leaves_whole_lines(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    first = folder / "0000.png"
    Image.fromarray(np.full((900, 1200, 3), 90, np.uint8)).save(first)
    for number in range(1, 2000):
        os.link(first, folder / f"{number:04}.png")
    out = tmp_path / "out.jsonl"
    process = run_process("caption", str(folder), "--jsonl", str(out), "--model", str(tiny_bundle))
    deadline_s = time.monotonic() + 30
    # Two lines: the one being written when the signal comes is taken back.
    while not (out.exists() and out.read_bytes().count(b"\n") > 1) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err
    content = out.read_text()
    assert content.endswith("\n")
    assert 0 < len([json.loads(line) for line in content.splitlines()]) < 2000
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
