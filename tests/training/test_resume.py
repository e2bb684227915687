"""A run that was killed and resumed writes what an uninterrupted one writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from tellapart.errors import CheckpointError, ConfigError  # noqa: E402
from tellapart_training.config import MleConfig  # noqa: E402
from tellapart_training.config_file import load_config  # noqa: E402
from tellapart_training.mle import train_mle  # noqa: E402
from tellapart_training.state import saved_states  # noqa: E402

pytestmark = pytest.mark.train

ROOT = Path(__file__).parents[2]
TOY = ROOT / "training" / "configs" / "toy_mle.toml"
SLOWER = ["optimizer.epochs=12", "loop.evaluate_every=4", "loop.save_every=3", "contrastive_weight=0.5"]
TIMES = ("elapsed_s", "seconds")


def _config(settings: list[str]) -> MleConfig:
    config = load_config(TOY, stage="mle", overrides=settings)
    assert isinstance(config, MleConfig)
    return config


def _lines(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / name).read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in entry.items() if key not in TIMES} for entry in entries]


def _kill_after(settings: list[str], run: Path, lines: int) -> None:
    """Start a run in another process and kill -9 it when it has written so many lines of metrics."""
    command = [sys.executable, "-m", "tellapart_training.cli", "train", "mle", "--config", str(TOY)]
    for setting in settings:
        command += ["--set", setting]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "sdk"), str(ROOT / "training")])}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        metrics = run / "metrics.jsonl"
        deadline_s = time.monotonic() + 90
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_killed_run_resumes_to_the_same_losses_and_weights(toy_settings: list[str], tmp_path: Path) -> None:
    settings = [*toy_settings, *SLOWER]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _kill_after([*settings, f"run={killed}"], killed, lines=8)
    written = len(_lines(killed)) if (killed / "metrics.jsonl").read_bytes().endswith(b"\n") else 8
    assert written < 24 + 3
    assert saved_states(killed / "state")
    train_mle(_config([*settings, f"run={killed}"]), resume=True)
    train_mle(_config([*settings, f"run={whole}"]))
    assert len(_lines(whole)) == 24 + 3  # 12 epochs of 2 steps, 3 evaluations
    assert _lines(killed) == _lines(whole)
    assert _lines(killed, "samples.jsonl") == _lines(whole, "samples.jsonl")
    ours, theirs = (load_file(run / "best" / "model.safetensors") for run in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    facts = json.loads((killed / "run.json").read_text(encoding="utf-8"))
    assert facts["finished"]
    assert len(facts["starts"]) == 2
    assert [path.name for path in saved_states(killed / "state")] == ["step-00000022", "step-00000024"]


def test_resuming_a_finished_run_changes_nothing(toy_settings: list[str]) -> None:
    config = _config([*toy_settings, "optimizer.epochs=1"])
    train_mle(config)
    before = (Path(config.run) / "metrics.jsonl").read_bytes()
    train_mle(config, resume=True)
    assert (Path(config.run) / "metrics.jsonl").read_bytes() == before


def test_a_run_folder_is_neither_overwritten_nor_resumed_with_another_config(toy_settings: list[str]) -> None:
    settings = [*toy_settings, "optimizer.epochs=1"]
    train_mle(_config(settings))
    with pytest.raises(ConfigError, match="add --resume"):
        train_mle(_config(settings))
    with pytest.raises(ConfigError, match=r"other values of optimizer\.lr, seed"):
        train_mle(_config([*settings, "seed=5", "optimizer.lr=1.0"]), resume=True)
    train_mle(_config([*settings, "loop.log_every=7"]), resume=True)


def test_a_damaged_state_is_named_and_the_older_one_serves(toy_settings: list[str]) -> None:
    config = _config([*toy_settings, "optimizer.epochs=2"])
    train_mle(config)
    reference = _lines(Path(config.run))
    states = saved_states(Path(config.run) / "state")
    (states[-1] / "optimizer.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match=r"step-00000004 is damaged .*delete it"):
        train_mle(config, resume=True)
    for file in states[-1].iterdir():
        file.unlink()
    train_mle(config, resume=True)
    assert _lines(Path(config.run)) == reference


def test_states_hold_no_pickle(toy_settings: list[str]) -> None:
    config = _config([*toy_settings, "optimizer.epochs=1"])
    train_mle(config)
    names = {file.name for state in saved_states(Path(config.run) / "state") for file in state.iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"}
