"""The processor of an image-text model: how its photos and its chat become numbers.

Opened from the files of a checkpoint, never with code of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tellapart.errors import CheckpointError

_FILES = ("preprocessor_config.json", "processor_config.json")


def open_processor(folder: Path, kind: str) -> Any:
    """The processor of a checkpoint; its tokenizer pads on the left.

    Args:
        folder: of the checkpoint.
        kind: "model_type" of its configuration.

    Raises:
        CheckpointError: there is none, it needs a package that is not here, or it knows no chat.
    """
    import transformers

    if not any((folder / name).is_file() for name in _FILES):
        raise CheckpointError(
            f"{folder} has no processor ({_FILES[0]}), which says how photos are cut and scaled: download "
            f"the whole checkpoint"
        )
    # SmolVLM's own reads videos too and needs torchvision for them; with photos it does what Idefics3's does.
    reader = transformers.Idefics3Processor if kind == "smolvlm" else transformers.AutoProcessor
    try:
        found = reader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: its processor cannot be opened here ({_cause(error)}): install what it needs, or "
            f"take another model"
        ) from error
    if not (hasattr(found, "image_processor") and hasattr(found, "tokenizer")):
        # transformers gives what it finds, and that may be half of a processor.
        raise CheckpointError(
            f"{folder} has no processor of photos and text, only {type(found).__name__}: download the whole "
            f"checkpoint"
        )
    if not (getattr(found, "chat_template", None) or found.tokenizer.chat_template):
        raise CheckpointError(
            f"{folder} has no chat template, so nobody knows where a photo stands in its prompt: give a "
            f"model that was made for chats"
        )
    found.tokenizer.padding_side = "left"
    # Some tokenizers count sentences by habit; a chat has none, and most of these networks refuse the count.
    names = [name for name in found.tokenizer.model_input_names if name != "token_type_ids"]
    found.tokenizer.model_input_names = names
    return found


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:  # of a module that cannot be imported, the name of the missing one
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()[:200]
