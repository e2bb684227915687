"""The doctor: what it finds, what it advises, and that a bare machine gets an answer too."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tellapart import __version__, doctor
from tellapart.backends.threads import remembered
from tellapart.bundle import open_bundle
from tellapart.cli import main
from tellapart.doctor import advise_threads, choose_threads, examine_machine, thread_candidates
from tellapart.types import RuntimeOptions


def test_the_machine_is_described_from_its_own_sources() -> None:
    machine = examine_machine()
    assert machine.tellapart == __version__
    assert machine.packages["numpy"] == metadata.version("numpy")
    assert machine.backends["onnxruntime"]
    assert set(machine.backends) == {"onnxruntime", "openvino", "coreml"}
    assert sys.platform == "darwin" or not machine.backends["coreml"]  # installed or not
    assert "CPUExecutionProvider" in machine.providers
    if sys.platform == "linux":
        assert machine.cores == len(os.sched_getaffinity(0))
    json.dumps(machine.to_record())


@pytest.mark.parametrize(
    ("cores", "candidates"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))]
)
def test_candidates_are_powers_of_two_and_all_cores(cores: int, candidates: tuple[int, ...]) -> None:
    assert thread_candidates(cores) == candidates


@pytest.mark.parametrize(
    ("median_ms", "threads"),
    [
        ({1: 10.0}, 1),
        ({1: 20.0, 2: 10.0, 4: 9.6}, 2),  # 4 % faster is not worth two more
        ({1: 20.0, 2: 10.0, 4: 9.0}, 4),
        ({1: 10.0, 2: 12.0}, 1),
    ],
)
def test_the_fewest_threads_that_are_nearly_fastest_win(median_ms: dict[int, float], threads: int) -> None:
    assert choose_threads(median_ms) == threads


def test_the_advice_is_measured_with_each_number(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tellapart.bench import drawn_photos

    monkeypatch.setattr(doctor, "usable_cores", lambda: 2)
    advice = advise_threads(tiny_bundle, drawn_photos(1), runtime=RuntimeOptions(), rounds=1)
    assert set(advice.median_ms) == {1, 2}
    assert advice.threads in (1, 2)
    assert min(advice.median_ms.values()) > 0
    assert set(advice.by_graph) == {"vision", "decoder"}
    with open_bundle(tiny_bundle) as bundle:  # kept, and followed from now on
        assert remembered(bundle.sha256) == advice.by_graph


def test_doctor_speaks_json_and_prose(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--no-measure"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["tellapart"] == __version__
    assert page["advice"] is None
    assert main(["doctor", "--model", str(tiny_bundle)]) == 0
    assert "recommended: --threads" in capsys.readouterr().out


def test_without_a_bundle_the_doctor_still_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--model", str(tmp_path / "gone")]) == 0
    assert "not measured: there is no bundle" in capsys.readouterr().out


def test_without_a_runtime_the_doctor_says_what_to_install(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["doctor", "--json", "--model", str(tiny_bundle)]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["providers"] == []
    assert 'pip install "tellapart[cpu]"' in page["obstacle"]
