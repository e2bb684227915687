"""What is seen in a photo, as statements beside the human captions: from experts, or from a model that looks.

Statements may add to what people wrote; the checks never let them contradict it.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tellapart.errors import BackendError, DataError, ImageError, TellapartError
from tellapart.image import load_image
from tellapart.types import PixelArray
from tellapart_training.boost.asking import Asker, NoAnswerError
from tellapart_training.boost.chat import Decoding
from tellapart_training.boost.experts.expert import Expert, Sight
from tellapart_training.boost.facts import content_lemmas
from tellapart_training.boost.parsing import Parser
from tellapart_training.boost.prompt import Prompt
from tellapart_training.boost.source import Subject
from tellapart_training.boost.texts import clean_text, refusal
from tellapart_training.images import ImageSource

_MARK = re.compile(r"\A\s*(?:[-*\u2022]|\d+[.)])\s+")
_MOST_STATEMENTS = 8
DESCRIPTION_TOKENS = 300
"""Longest description of a photo."""


@dataclass(frozen=True)
class Seen:
    """What was seen in one photo.

    Attributes:
        by: statements by the name of who saw it.
        sights: of experts, each with the expert's name; those alone whose statement can be used.
    """

    by: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sights: tuple[tuple[str, Sight], ...] = ()

    @property
    def statements(self) -> tuple[str, ...]:
        """All statements."""
        return tuple(statement for statements in self.by.values() for statement in statements)

    def record(self) -> dict[str, list[str]]:
        """What an output says of it."""
        return {name: list(statements) for name, statements in self.by.items()}


@dataclass(frozen=True)
class Look:
    """How a model is asked to look.

    Attributes:
        asker: of the model.
        prompt: of the description.
        decoding: how it is drawn.
        longest_px: longer photos are made smaller before they are sent.
        model: name of the model.
        source: what else is known of it: revision, hash, precision.
    """

    asker: Asker
    prompt: Prompt
    decoding: Decoding
    longest_px: int = 768
    model: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What an output says of it."""
        return {
            "model": self.model,
            "prompt": self.prompt.record(),
            "decoding": self.decoding.fields(),
            **({"source": dict(self.source)} if self.source else {}),
        }


class Vision:
    """Sees photos with experts, with a model, or both; safe from many threads.

    Args:
        source: of the photos.
        experts: asked in order.
        look: of the model; None without one.
        parser: of descriptions; safe from many threads.
    """

    def __init__(
        self, source: ImageSource, *, experts: Sequence[Expert], look: Look | None, parser: Parser
    ) -> None:
        self._source, self._experts, self.look, self._parser = source, experts, look, parser

    def see(self, subject: Subject, rejected: Counter[str]) -> Seen:
        """What is seen in an image's photo; what cannot be used is counted in `rejected`.

        Raises:
            BudgetError, StoppedError: as `Asker.ask`.
            BackendError: as `Asker.ask`, or an expert failed.
        """
        try:
            photo = load_image(self._source.read(subject.record.image))
        except (ImageError, DataError):
            rejected["photo: unreadable"] += 1
            return Seen()
        by: dict[str, tuple[str, ...]] = {}
        sights: list[tuple[str, Sight]] = []
        for expert in self._experts:
            own = _asked(expert, photo, subject)
            by[expert.name] = usable([sight.statement for sight in own], rejected)
            kept = set(by[expert.name])
            sights += [(expert.name, sight) for sight in own if clean_text(sight.statement) in kept]
        if self.look is not None:
            by[self.look.prompt.name] = self._describe(self.look, subject, photo, rejected)
        return Seen({name: statements for name, statements in by.items() if statements}, tuple(sights))

    def _describe(
        self, look: Look, subject: Subject, photo: PixelArray, rejected: Counter[str]
    ) -> tuple[str, ...]:
        messages = look_messages(look.prompt, data_uri(photo, look.longest_px))
        try:
            answer = look.asker.ask(subject.record.image, messages, look.decoding)
        except NoAnswerError:
            rejected["description: no answer"] += 1
            return ()
        if answer.finish == "refusal":
            rejected["description: refusal"] += 1
            return ()
        lines = [_MARK.sub("", line) for line in answer.text.splitlines()]
        statements = usable([line for line in lines if line.strip()], rejected)
        # A description that shares no word with what anybody wrote is of another photo.
        said = {lemma for sentence in subject.sentences for lemma in content_lemmas(sentence)}
        told = {lemma for sentence in self._parser.parse(statements) for lemma in content_lemmas(sentence)}
        if not said & told:
            rejected["description: of another photo"] += 1
            return ()
        return statements


def _asked(expert: Expert, photo: PixelArray, subject: Subject) -> list[Sight]:
    try:
        return expert.see(photo, subject)
    except TellapartError:
        raise
    except Exception as error:  # somebody else's package
        raise BackendError(
            f"the expert {expert.name} failed on {subject.record.image}: {type(error).__name__}: {error}"
        ) from error


def usable(lines: Sequence[str], rejected: Counter[str]) -> tuple[str, ...]:
    """Statements that may be shown to a model: English, no orders; eight at most, each once."""
    kept: dict[str, None] = {}
    for line in lines:
        text = clean_text(line)
        reason = refusal(text)
        if reason:
            rejected[f"seen: {reason}"] += 1
        else:
            kept.setdefault(text)
    return tuple(kept)[:_MOST_STATEMENTS]


def look_messages(prompt: Prompt, uri: str) -> list[dict[str, Any]]:
    """The messages that ask for a description of a photo."""
    return [
        {"role": "system", "content": prompt.system},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": prompt.user},
                {"type": "image_url", "image_url": {"url": uri}},
            ],
        },
    ]


def data_uri(photo: PixelArray, longest_px: int) -> str:
    """A photo as a JPEG inside a message, made smaller where it is longer than asked."""
    from PIL import Image

    picture = Image.fromarray(photo)
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
