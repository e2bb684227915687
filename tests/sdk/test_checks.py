"""The doctor's checks: each does the thing, and says what mends it when it breaks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tellapart import checks
from tellapart.checks import Check, run_checks
from tellapart.cli import main
from tellapart.types import RuntimeOptions


def found(bundle: Path | None, *, flags: tuple[str, ...] = ("avx_vnni",)) -> dict[str, Check]:
    return {check.name: check for check in run_checks(bundle, runtime=RuntimeOptions(), cpu_flags=flags)}


def test_where_all_is_well_all_works(tiny_bundle: Path) -> None:
    page = found(tiny_bundle)
    for name in ("runtime", "pictures", "model", "caption", "8-bit", "cache"):
        assert page[name].works, page[name]
        assert page[name].mend is None
    assert "tiny" in page["model"].finding
    assert all(check.works or check.mend for check in page.values() if check.needed)


def test_a_damaged_model_is_named_and_the_embedded_one_is_mended(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, damaged)
    (damaged / "decoder.onnx").write_bytes(b"x")
    page = found(damaged)
    assert not page["model"].works
    assert "decoder.onnx" in page["model"].finding
    assert page["model"].mend is None  # somebody's own
    assert not page["caption"].works


def test_without_a_runtime_the_command_installs_one(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    page = found(tiny_bundle)
    assert not page["runtime"].works
    assert page["runtime"].mend == 'pip install "tellapart[cpu]"'
    assert not page["caption"].works


@pytest.mark.parametrize(
    ("version", "works"), [("1.22.1", False), ("1.23.0", True), ("1.32.0+cu12", True), ("2.0", True)]
)
def test_a_runtime_that_is_too_old_is_named(
    monkeypatch: pytest.MonkeyPatch, version: str, works: bool
) -> None:
    monkeypatch.setattr("tellapart.backends.ort.runtime_version", lambda: version)
    check = checks._runtime()
    assert check.works is works
    assert works or check.mend == 'pip install --upgrade "onnxruntime>=1.23"'


def test_two_runtimes_that_overwrote_each_other_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_version", lambda name: "1.32.0")
    check = checks._runtime()
    assert not check.works
    assert check.mend is not None
    assert check.mend.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_no_pillow_no_cache_and_no_dot_products(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    def fail(*_: object, **__: object) -> None:
        raise OSError("decoder jpeg not available")  # what Pillow says without its JPEG library

    monkeypatch.setattr("tellapart.image.load_image", fail)
    page = found(tiny_bundle, flags=("avx2",))
    assert not page["pictures"].works
    assert "pillow" in str(page["pictures"].mend)
    assert not page["cache"].works
    assert not page["cache"].needed
    assert "XDG_CACHE_HOME" in str(page["cache"].mend)
    assert not page["8-bit"].works


def test_an_extra_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "EXTRAS", {"app": ("no_such_module_here",), "export": ("json",)})
    app, export = checks._extras()
    assert (app.works, app.mend, app.needed) == (False, 'pip install "tellapart[app]"', False)
    assert export.works


def test_one_screen_and_json(tiny_bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--no-measure", "--model", str(tiny_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok   caption") for line in lines)
    assert len(lines) <= 32
    assert main(["doctor", "--no-measure", "--model", str(tmp_path)]) == 0
    assert "NO   model" in capsys.readouterr().out
    assert main(["doctor", "--no-measure", "--json", "--model", str(tiny_bundle)]) == 0
    page = json.loads(capsys.readouterr().out)
    assert {check["name"] for check in page["checks"]} >= {"runtime", "model", "caption"}
