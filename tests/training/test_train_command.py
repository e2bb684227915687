"""`tellapart train` as a user types it: what is wrong is said in one line, and by the exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellapart.cli import main

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def test_a_misspelt_key_ends_with_status_2_and_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(
        ["train", "mle", "--config", str(CONFIGS / "toy_mle.toml"), "--set", "optimizer.batchsize=4"]
    )
    captured = capsys.readouterr()
    assert status == 2
    assert "ConfigError" in captured.err
    assert "did you mean 'batch_size'" in captured.err
    assert captured.out == ""


def test_an_unknown_stage_is_refused() -> None:
    assert main(["train", "pretrain", "--config", "x.toml"]) == 2


@pytest.mark.train
def test_an_absent_checkpoint_and_bad_captions_leave_no_run_folder(
    toy_settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    arguments = ["train", "mle", "--config", str(CONFIGS / "toy_mle.toml")]
    for setting in toy_settings:
        arguments += ["--set", setting]
    assert main([*arguments, "--set", f"init={tmp_path / 'absent'}"]) == 1
    assert "CheckpointError" in capsys.readouterr().err
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"image": "0.png", "captions": ["a dog"]}\nnot json\n', encoding="utf-8")
    assert main([*arguments, "--set", f"data.captions={broken}"]) == 1
    assert f"{broken}:2: not JSON" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()
    assert main(arguments) == 0
    assert (tmp_path / "run" / "best" / "checkpoint.json").is_file()
