"""The state a run resumes from: safetensors and JSON in folders that appear whole or not at all.

A state is written to a scratch folder and renamed, so a `kill -9` leaves the newest whole one. Randomness
needs no
entry: every draw is keyed by (seed, epoch, index) or (seed, step), see `augment.keyed_generator`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tellapart.errors import CheckpointError

_PREFIX = "step-"


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tied tensor appears once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's tensors as `kind:parameter name`."""
    flat = {}
    for parameter, entry in optimizer.state.items():
        for kind, value in entry.items():
            flat[f"{kind}:{names[parameter]}"] = torch.as_tensor(value)
    return flat


def restore_optimizer(
    optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> None:
    """The reverse of `flatten_optimizer`, onto the device of each parameter.

    Raises:
        CheckpointError: the state names a parameter this model does not train.
    """
    for key, value in flat.items():
        kind, _, name = key.partition(":")
        if name not in parameters:
            raise CheckpointError(
                f"the saved state trains {name!r}, which this model does not: start a new run folder"
            )
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)


def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Copy by name, in place.

    Raises:
        CheckpointError: names or shapes differ.
    """
    if source.keys() != target.keys():
        odd = sorted(source.keys() ^ target.keys())[:3]
        raise CheckpointError(f"saved {what} and this model differ in {odd}: was the model changed since?")
    with torch.no_grad():
        for name, value in source.items():
            if target[name].shape != value.shape:
                raise CheckpointError(
                    f"saved {what} {name!r} is {tuple(value.shape)}, expected {tuple(target[name].shape)}"
                )
            target[name].copy_(value)


def save_state(
    folder: Path,
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any],
    keep: int,
) -> None:
    """Write one state and remove all but the newest `keep`.

    Args:
        folder: of all states of the run.
        step: optimizer steps done; names the state.
        tensors: groups of tensors; each becomes `<group>.safetensors`.
        facts: position and running facts, JSON.
        keep: how many states stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"scratch-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for group, entries in tensors.items():
        # clone: safetensors refuses views that share memory, such as slices of one buffer.
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in entries.items()},
                  scratch / f"{group}.safetensors")  # fmt: skip
    (scratch / "state.json").write_text(json.dumps({**facts, "step": step}, indent=1), encoding="utf-8")
    target = folder / f"{_PREFIX}{step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    for old in saved_states(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def saved_states(folder: Path) -> list[Path]:
    """Whole states, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / "state.json").is_file())


def load_newest_state(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest state, or None where there is none.

    Raises:
        CheckpointError: the newest state is damaged; the message says how to fall back to the one before.
    """
    for scratch in folder.glob("scratch-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    states = saved_states(folder)
    if not states:
        return None
    try:
        facts = json.loads((states[-1] / "state.json").read_text(encoding="utf-8"))
        tensors = {file.stem: load_file(file) for file in sorted(states[-1].glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"state {states[-1]} is damaged ({error}): delete it to resume from an older one"
        ) from error
    return tensors, facts


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in the place of another; `recover_folder` heals a kill in between."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Bring the old folder back if a kill left only it."""
    old = target.with_name(target.name + ".old")
    if old.exists() and not target.exists():
        os.replace(old, target)
