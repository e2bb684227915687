"""Checkpoints: written whole or not at all, checked before use, never unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tellapart.errors import CheckpointError, ConfigError  # noqa: E402
from tellapart_model import checkpoint as module  # noqa: E402
from tellapart_model.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from tellapart_model.compact import CompactPair  # noqa: E402
from tellapart_model.config import SPECIAL_PIECES, CompactConfig  # noqa: E402

pytestmark = pytest.mark.train
VOCABULARY = [*SPECIAL_PIECES, *(f"w{index}" for index in range(60))]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, CompactPair(CompactConfig.toy()), vocabulary=VOCABULARY, extra={"step": 7})
    return folder


def _rewrite(folder: Path, name: str, text: str) -> None:
    """Change a file and make the manifest agree, so that what is inside gets judged."""
    (folder / name).write_text(text)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest["files"][name] = module._digest(folder / name)
    (folder / "checkpoint.json").write_text(json.dumps(manifest))


def test_comes_back_equal(saved: Path) -> None:
    torch.manual_seed(0)
    expected = CompactPair(CompactConfig.toy()).state_dict()
    loaded = load_checkpoint(saved)
    assert loaded.vocabulary == VOCABULARY
    assert loaded.extra == {"step": 7}
    assert not loaded.model.training
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_replaces_an_older_one(saved: Path) -> None:
    save_checkpoint(saved, CompactPair(CompactConfig.toy()), vocabulary=VOCABULARY, extra={"step": 8})
    assert load_checkpoint(saved).extra == {"step": 8}
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_failed_save_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, CompactPair(CompactConfig.toy()), vocabulary=VOCABULARY, extra={"step": 9})
    monkeypatch.undo()
    assert load_checkpoint(saved).extra == {"step": 7}
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_flipped_byte_is_refused(saved: Path, name: str) -> None:
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=f"{name} is not the file that was saved"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["checkpoint.json", "config.json", "model.safetensors", "vocab.txt"])
def test_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(saved)


def test_other_architecture_is_named(saved: Path) -> None:
    _rewrite(saved, "config.json", json.dumps({"family": "clipcap", "prefix_length": 10}))
    with pytest.raises(CheckpointError, match="clipcap"):
        load_checkpoint(saved)


def test_misspelt_architecture_key(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["widht"] = config.pop("width")
    _rewrite(saved, "config.json", json.dumps(config))
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        load_checkpoint(saved)


def test_weights_of_another_size(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    _rewrite(saved, "config.json", json.dumps({**config, "layers": 3}))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(saved)


def test_vocabulary_of_another_length(saved: Path) -> None:
    _rewrite(saved, "vocab.txt", "[PAD]\n")
    with pytest.raises(CheckpointError, match=r"vocab\.txt has 1 lines"):
        load_checkpoint(saved)
