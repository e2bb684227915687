"""Prompts as text files, each with a version in its name; what a run used is recorded by name and hash.

A prompt file is never edited once it has been used: a new version is a new file. The captions of an image
travel as a JSON list in the last message, so that nothing in them can end the list and pass for an
instruction.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tellapart.errors import UsageError

_FOLDER = Path(__file__).with_name("prompts")
_SECTION = re.compile(r"\A\[system\]\n(?P<system>.*?)^\[user\]\n(?P<user>.*)\Z", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        name: file name without its end, the version last: "blend-plain-1".
        system: instructions, with `{max_words}`.
        user: the message, with `{captions}` and `{vision}` where it takes them.
        sha256: of the file.
    """

    name: str
    system: str
    user: str
    sha256: str

    def messages(
        self, *, captions: Sequence[str] = (), vision: Sequence[str] = (), max_words: int
    ) -> list[dict[str, str]]:
        """The messages of a chat, for one image."""
        system = self.system.replace("{max_words}", str(max_words))
        # One pass, so that a caption that says "{vision}" stays a caption.
        given = {"captions": _quoted(captions), "vision": _quoted(vision)}
        user = re.sub(r"\{(captions|vision)\}", lambda match: given[match[1]], self.user)
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def record(self) -> dict[str, str]:
        """What an output says of its prompt."""
        return {"name": self.name, "sha256": self.sha256}


def _quoted(texts: Sequence[str]) -> str:
    return json.dumps(list(texts), ensure_ascii=False)


@cache
def prompt_names() -> tuple[str, ...]:
    """Names of all prompts of this package, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.txt")))


def load_prompt(name: str) -> Prompt:
    """A prompt of this package by name, or a file of the user's by path.

    Raises:
        UsageError: there is no such prompt, or it is not "[system] ... [user] ...".
    """
    path = Path(name) if name.endswith(".txt") else _FOLDER / f"{name}.txt"
    try:
        data = path.read_bytes()
        match = _SECTION.match(data.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"no prompt {name!r} ({error}): there are {', '.join(prompt_names())}") from error
    if match is None:
        raise UsageError(f"{path}: a prompt is a line [system], its text, a line [user], its text")
    return Prompt(path.stem, match["system"].strip(), match["user"].strip(), hashlib.sha256(data).hexdigest())
