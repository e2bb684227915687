"""The architectures that can be exported, one module each; `docs/add_a_family.md` tells how to add one.

A family is a module with one function, `open_checkpoint(folder) -> Subject`, and a line in `FAMILIES`. It
is imported when a checkpoint asks for it, as the networks of one family take seconds to load and the
others are not needed.
"""

from __future__ import annotations

import difflib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from tellapart.errors import CheckpointError, UsageError
from tellapart_export.subject import Subject

FAMILIES = {
    "compact": "compact",
    "vision-encoder-decoder": "vision_encoder_decoder",
    "blip": "blip",
    "git": "git",
    "clip": "clip",
    "siglip": "siglip",
    "clipcap": "clipcap",
    "smolvlm": "smolvlm",
    "idefics3": "smolvlm",
    "open_clip": "open_clip",
}
"""What `config.json` calls an architecture -> the module that knows it."""

PROMPTED = ("smolvlm", "idefics3")
"""Those that are asked a question with the picture."""

GUIDE = "docs/add_a_family.md"


def open_checkpoint(folder: Path, prompt: str = "") -> Subject:
    """Load a checkpoint of any known family.

    Args:
        folder: with a `config.json`; of ours or as Hugging Face's libraries write it.
        prompt: the question of families that are asked one; "" is the family's own.

    Raises:
        CheckpointError: no checkpoint there, half of one, damaged, or of an architecture that nobody added
            yet.
        UsageError: a prompt for a family that takes none.
    """
    name = find_family(folder)
    if prompt and name not in PROMPTED:
        raise UsageError(
            f"a prompt is for networks that are asked a question ({', '.join(PROMPTED)}), and {folder} is of "
            f"the family {name!r}; leave it out"
        )
    module: Any = import_module(f"{__name__}.{FAMILIES[name]}")
    subject: Subject = module.open_checkpoint(folder, *([prompt] if prompt else []))
    return subject


def find_family(folder: Path) -> str:
    """Which family a folder holds, by its `config.json`; the compact pair where it says nothing.

    Raises:
        CheckpointError: another architecture, or a configuration that is no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file() and (folder / "open_clip_config.json").is_file():
        return "open_clip"
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "checkpoint.json").is_file():
            raise CheckpointError(
                f"{folder}: expected a checkpoint with a config.json, which is missing; copy or download "
                f"the whole "
                "folder again"
            )
        return "compact"  # whose reader says what is missing
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is not JSON ({error}); copy or download the checkpoint again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(config).__name__}")
    kind = config.get("family") or config.get("architecture") or config.get("model_type") or "compact"
    if kind in FAMILIES:
        return str(kind)
    raise CheckpointError(f"{folder} holds the architecture {kind!r}, {_advice(str(kind))}")


def _advice(kind: str) -> str:
    known = sorted(FAMILIES)
    inside = sorted((name for name in known if name in kind), key=len, reverse=True)  # "chinese_clip"
    near = difflib.get_close_matches(kind, known, n=1) or inside
    hint = f"the nearest known one is {near[0]!r}" if near else f"known ones are {', '.join(known)}"
    return f"which this version does not export; {hint}. {GUIDE} tells how to add one in a file"
