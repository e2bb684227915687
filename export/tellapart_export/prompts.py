"""A question -> the text that a chat network was trained to see around it, by the checkpoint's own template.

A template is a page of Jinja; transformers runs it in a sandbox that reaches no file and no code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tellapart.errors import CheckpointError

TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Where checkpoints have it, the first that does counts."""


def render_prompt(folder: Path, tokenizer: Any, prompt: str) -> str:
    """One picture and one question of a user, and the beginning of the answer.

    Args:
        folder: of the checkpoint.
        tokenizer: of transformers, for the marks that a template names.
        prompt: the question.

    Raises:
        CheckpointError: there is no template, or it cannot be rendered.
    """
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    template = _read_template(folder)
    try:
        text = tokenizer.apply_chat_template(
            talk, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # Jinja's errors, and whatever the page does wrong with the talk
        raise CheckpointError(f"{folder}: its chat template cannot be rendered ({error})") from error
    return str(text)


def _read_template(folder: Path) -> str:
    for name in TEMPLATES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            found = text if name.endswith(".jinja") else json.loads(text).get("chat_template")
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); download it again") from error
        if isinstance(found, str) and found:
            return found
    raise CheckpointError(
        f"{folder} has no chat template ({', '.join(TEMPLATES)}), so nobody knows how to ask it; copy that "
        "file of the checkpoint into the folder"
    )
