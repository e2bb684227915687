"""Two processes under Accelerate train like one: same losses, same weights up to the order of sums."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _train(stage: str, settings: list[str], processes: int) -> None:
    command = [sys.executable, "-m", "tellapart_training.cli", "train", stage]
    command += ["--config", str(ROOT / "training" / "configs" / f"toy_{stage}.toml")]
    for setting in settings:
        command += ["--set", setting]
    port = str(_free_port())
    running = []
    for rank in range(processes):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "sdk"), str(ROOT / "training")]),
        }
        if processes > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "ACCELERATE_USE_CPU": "true",
            }
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * processes, errors


def _numbers(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return [entry for entry in map(json.loads, lines) if entry["kind"] == "train"], facts


@pytest.mark.parametrize("stage", ["mle", "retriever"])
def test_two_processes_train_like_one(stage: str, toy_settings: list[str], tmp_path: Path) -> None:
    settings = [*toy_settings, "optimizer.epochs=2", "optimizer.clip_norm=0.0"]
    if stage == "mle":
        settings += ["contrastive_weight=0.5", "optimizer.lr_multipliers.trunk=0.1"]
    _train(stage, [*settings, f"run={tmp_path / 'one'}"], 1)
    _train(stage, [*settings, f"run={tmp_path / 'two'}"], 2)
    one, facts_one = _numbers(tmp_path / "one")
    two, facts_two = _numbers(tmp_path / "two")
    assert (facts_one["processes"], facts_two["processes"]) == (1, 2)
    assert len(one) == len(two) == 4
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-4)
    weights = [load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        if name.endswith("keys.bias"):
            continue  # softmax takes no notice of it: its gradient is rounding, of which Adam makes steps
        torch.testing.assert_close(weights[1][name], value, rtol=2e-2, atol=2e-3)
