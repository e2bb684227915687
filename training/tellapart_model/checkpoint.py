"""Checkpoints: config.json, model.safetensors, vocab.txt, and `checkpoint.json` written last.

The manifest's presence means that the folder is whole; it holds size and sha256 of every other file.
Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tellapart.errors import CheckpointError
from tellapart_model.compact import CompactPair
from tellapart_model.config import CompactConfig, load_config, to_json

MANIFEST = "checkpoint.json"
FILES = ("config.json", "model.safetensors", "vocab.txt")


class Checkpoint(NamedTuple):
    """What a checkpoint folder holds; `sha256` is that of its manifest, its name in every report."""

    model: CompactPair
    config: CompactConfig
    vocabulary: list[str]
    extra: dict[str, Any]
    sha256: str


def _digest(path: Path) -> dict[str, int | str]:
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": hasher.hexdigest()}


def save_checkpoint(
    folder: str | Path, model: CompactPair, *, vocabulary: Sequence[str], extra: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint in one step: a scratch folder beside it, then a rename.

    Args:
        folder: where it shall stand; an older checkpoint there is replaced.
        model: the network; its parameters are written as float32.
        vocabulary: lines of vocab.txt.
        extra: JSON-ready facts about the training (stage, step, metrics).
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        (scratch / "config.json").write_text(to_json(model.config), encoding="utf-8")
        state = {k: v.detach().cpu().float().contiguous() for k, v in model.state_dict().items()}
        save_file(state, scratch / "model.safetensors")
        (scratch / "vocab.txt").write_text("".join(f"{line}\n" for line in vocabulary), encoding="utf-8")
        manifest = {
            "format_version": 1,
            "files": {n: _digest(scratch / n) for n in FILES},
            "extra": extra or {},
        }
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.exists():
            target.rename(old)
        scratch.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Open and check a checkpoint; the network comes back in eval mode.

    Raises:
        CheckpointError: incomplete folder, changed file, other architecture, or weights that do not fit.
        ConfigError: an unknown key in config.json.
    """
    root = Path(folder)
    try:
        raw = (root / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        files = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{root} is not a whole tellapart checkpoint: {MANIFEST} is missing or unreadable ({error}). "
            "Give the folder that `tellapart train` wrote."
        ) from error
    for name in FILES:
        if not (root / name).is_file():
            raise CheckpointError(f"{root}: {name} is missing; copy the whole checkpoint folder")
        if name not in files or _digest(root / name) != files[name]:
            raise CheckpointError(f"{root}: {name} is not the file that was saved (size or sha256 differs)")
    config = load_config(root / "config.json")
    vocabulary = (root / "vocab.txt").read_text(encoding="utf-8").splitlines()
    if len(vocabulary) != config.vocabulary_size:
        raise CheckpointError(
            f"{root}: vocab.txt has {len(vocabulary)} lines, config.json says {config.vocabulary_size}"
        )
    model = CompactPair(config)
    try:
        state = load_file(root / "model.safetensors")
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{root}: model.safetensors does not fit config.json: {error}") from error
    model.eval()
    extra = manifest.get("extra", {})
    return Checkpoint(model, config, vocabulary, extra, hashlib.sha256(raw).hexdigest())
