"""The mean of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tellapart.cli import main  # noqa: E402
from tellapart.errors import CheckpointError, UsageError  # noqa: E402
from tellapart_model.checkpoint import MANIFEST, save_checkpoint  # noqa: E402
from tellapart_model.compact import CompactPair  # noqa: E402
from tellapart_model.config import CompactConfig  # noqa: E402
from tellapart_training.average import average_checkpoints  # noqa: E402
from tellapart_training.pair import open_pair  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture
def runs(tmp_path: Path, toy_world: Path) -> list[Path]:
    """Three checkpoints of one network: as it was, and with every weight moved by 3 and by -6."""
    folders = []
    for number, step in enumerate((0.0, 3.0, -6.0)):
        pair = open_pair(toy_world / "init")
        with torch.no_grad():
            for parameter in pair.network.parameters():
                parameter += step
        folders.append(tmp_path / f"run-{number}")
        pair.save(folders[-1], {})
    return folders


def test_every_weight_is_the_mean(runs: list[Path], toy_world: Path, tmp_path: Path) -> None:
    out = average_checkpoints(runs, tmp_path / "average")
    found, start = (open_pair(folder).network.state_dict() for folder in (out, toy_world / "init"))
    trained = dict(open_pair(out).network.named_parameters())
    for name, tensor in start.items():
        shift = -1.0 if name in trained else 0.0  # (0 + 3 - 6) / 3; statistics are the same in all
        assert torch.allclose(found[name].double(), tensor.double() + shift, atol=1e-5), name
    page = json.loads((out / MANIFEST).read_text())
    assert [open_pair(folder).sha256 for folder in runs] == page["extra"]["average_of"]


def test_the_command_writes_what_the_function_writes(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "average"
    assert main(["average", *map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    again = average_checkpoints(runs, tmp_path / "again")
    ours, theirs = (open_pair(folder).network.state_dict() for folder in (out, again))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_what_cannot_be_averaged_is_refused_and_nothing_is_written(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "average"
    with pytest.raises(UsageError, match="at least two"):
        average_checkpoints(runs[:1], out)
    vocabulary = list(open_pair(runs[0]).vocabulary)
    other = tmp_path / "other"
    save_checkpoint(other, CompactPair(CompactConfig.toy()), vocabulary=[*vocabulary[:-1], "else"])
    with pytest.raises(CheckpointError, match="vocabulary"):
        average_checkpoints([runs[0], other], out)
    with pytest.raises(CheckpointError):
        average_checkpoints([runs[0], tmp_path / "absent"], out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UsageError, match="exists"):
        average_checkpoints(runs, out)
