"""How many threads a graph gets: asked for, measured, or by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tellapart.backends import open_session, threads
from tellapart.bundle import open_bundle
from tellapart.cache_folder import default_cache_dir
from tellapart.types import RuntimeOptions


@pytest.fixture(autouse=True)
def six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "physical_cores", lambda: 6)


@pytest.mark.parametrize(
    ("role", "size", "count"),
    [("vision", 1, 4), ("decoder", 5 << 20, 1), ("decoder", 32 << 20, 4), ("text", 1 << 30, 1)],
)
def test_the_rule_shares_what_is_worth_sharing(role: str, size: int, count: int) -> None:
    assert threads.rule(role, size) == count


def test_what_was_measured_is_followed_by_auto_alone(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle) as bundle:

        def counts(**options: Any) -> list[int]:
            runtime = RuntimeOptions(**options)
            return [open_session(bundle, role, runtime).threads for role in ("vision", "decoder", "text")]

        assert counts() == [4, 1, 1]
        path = threads.remember(bundle.sha256, {"vision": 2, "decoder": 3})
        assert path is not None
        assert path.parent == default_cache_dir()
        assert counts() == [2, 3, 1]
        assert counts(threads=1) == [1, 1, 1]
        threads.remember("another model", {"vision": 5, "decoder": 5})
        assert counts() == [2, 3, 1]


def test_a_measurement_is_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    threads.remember("model", {"vision": 2, "decoder": 1})
    assert threads.remembered("model") == {"vision": 2, "decoder": 1}
    monkeypatch.setattr(threads, "physical_cores", lambda: 2)
    assert threads.remembered("model") == {}


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"model on 6 cores": 3}', '{"model on 6 cores": {"vision": "2"}}']
)
def test_a_cache_that_is_none_counts_for_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "threads.json").write_text(content)
    assert threads.remembered("model", cache_dir=tmp_path) == {}
    assert threads.remember("model", {"vision": 3}, cache_dir=tmp_path) == tmp_path / "threads.json"
    assert threads.remembered("model", cache_dir=tmp_path) == {"vision": 3}
    assert list(tmp_path.iterdir()) == [tmp_path / "threads.json"]


def test_a_folder_that_cannot_be_written_costs_the_measurement_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert threads.remember("model", {"vision": 3}, cache_dir=tmp_path / "file") is None


def test_numbers_that_are_none_are_passed_over(tmp_path: Path) -> None:
    page = {"model on 6 cores": {"vision": 0, "decoder": True, "text": 4, "more": 1}}
    (tmp_path / "threads.json").write_text(json.dumps(page))
    assert threads.remembered("model", cache_dir=tmp_path) == {}


def test_workers_are_the_cores_up_to_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.count_workers() == 6
    monkeypatch.setattr(threads, "physical_cores", lambda: 64)
    assert threads.count_workers() == 8
