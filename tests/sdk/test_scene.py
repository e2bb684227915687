"""The gate between two scenes, on rows whose cosines are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tellapart import SceneGate, UsageError
from tellapart.types import FloatArray


def at(cosine: float) -> FloatArray:
    """A unit row whose cosine with `at(1.0)` is as given."""
    return np.array([cosine, math.sqrt(1 - cosine * cosine), 0.0], np.float32)


ELSEWHERE = np.array([0.0, 0.0, 1.0], np.float32)


def test_the_first_look_is_new_and_the_next_alike_ones_are_not() -> None:
    gate = SceneGate()
    assert gate.decide(at(1.0)) == "new"
    assert gate.similarity is None
    assert [gate.decide(at(cosine)) for cosine in (1.0, 0.9, 0.76)] == ["same"] * 3
    assert gate.similarity == pytest.approx(0.76, abs=1e-6)


def test_a_cut_is_new_once_it_has_come_to_rest() -> None:
    gate = SceneGate()
    gate.decide(at(1.0))
    assert [gate.decide(ELSEWHERE) for _ in range(4)] == ["changing", "new", "same", "same"]


def test_who_walks_through_changes_nothing() -> None:
    gate = SceneGate()
    gate.decide(at(1.0))
    rows = [ELSEWHERE, at(0.95), at(1.0)]
    assert [gate.decide(row) for row in rows] == ["changing", "same", "same"]


def test_between_the_bars_a_change_that_began_goes_on_and_none_begins() -> None:
    gate = SceneGate(change_below=0.7, same_above=0.9, settled_above=1.0, patience=9)
    gate.decide(at(1.0))
    assert gate.decide(at(0.8)) == "same"
    assert gate.decide(at(0.6)) == "changing"
    assert gate.decide(at(0.8)) == "changing"
    assert gate.decide(at(0.9001)) == "same"
    assert gate.decide(at(0.8)) == "same"


def test_what_never_rests_is_new_when_patience_is_over() -> None:
    gate = SceneGate(patience=3)
    gate.decide(np.eye(8, dtype=np.float32)[0])
    states = [gate.decide(row) for row in np.eye(8, dtype=np.float32)[1:]]
    assert states == ["changing", "changing", "changing", "new", "changing", "changing", "changing"]
    hasty = SceneGate(patience=0)
    assert [hasty.decide(row) for row in np.eye(3, dtype=np.float32)] == ["new"] * 3


def test_slow_drift_is_seen() -> None:
    gate = SceneGate()
    angles = np.linspace(0, math.pi / 2, 40)
    rows = [np.array([math.cos(angle), math.sin(angle)], np.float32) for angle in angles]
    assert min(float(a @ b) for a, b in itertools.pairwise(rows)) > 0.99
    assert [gate.decide(row) for row in rows].count("new") >= 2


def test_forgetting_makes_any_look_new() -> None:
    gate = SceneGate()
    gate.decide(at(1.0))
    gate.forget()
    assert gate.similarity is None
    assert gate.decide(at(1.0)[None]) == "new"


@pytest.mark.parametrize(
    "wrong", [{"change_below": 1.5}, {"same_above": 0.5}, {"settled_above": -2.0}, {"patience": -1}]
)
def test_impossible_bars_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        SceneGate(**wrong)  # type: ignore[arg-type]
