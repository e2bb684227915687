"""What became of one image: its boosted captions as a line of the output, or why it was dropped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tellapart_training.boost.source import Subject


@dataclass(frozen=True)
class Written:
    """A caption that passed.

    Attributes:
        text: the caption.
        base: index of the human caption that it grew from, None for a language model's.
        grafts: what the blend added.
        seen: what an expert added, as (name of the expert, words); no person wrote these words.
    """

    text: str
    base: int | None = None
    grafts: tuple[str, ...] = ()
    seen: tuple[tuple[str, str], ...] = ()


@dataclass
class Outcome:
    """One image, done.

    Attributes:
        image: its name.
        captions: those that passed; none means that the image is dropped.
        generator: who wrote them.
        fallback: whether the generator that was asked for failed and the blend stepped in.
        rejected: captions that failed, by rule.
        dropped: why there is no caption; "" where there are some.
        details: model, prompt and decoding, for the output.
    """

    image: str
    captions: list[Written] = field(default_factory=list)
    generator: str = "extractive"
    fallback: bool = False
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def _seen(self) -> dict[str, Any]:
        seen = [[{"by": name, "words": words} for name, words in one.seen] for one in self.captions]
        return {"seen": seen} if any(seen) else {}

    def line(self, subject: Subject) -> dict[str, Any]:
        """The image as the output has it: a record that training reads, and where each caption is from."""
        return {
            "image": subject.record.image,
            "split": subject.record.split,
            "captions": [written.text for written in self.captions],
            "human_captions": list(subject.record.captions),
            "boost": {
                "generator": self.generator,
                "fallback": self.fallback,
                "base": [written.base for written in self.captions],
                "grafts": [list(written.grafts) for written in self.captions],
                **self._seen(),
                **self.details,
            },
        }


@dataclass(frozen=True)
class Done:
    """An image that is done, and where it stood in the file."""

    place: int
    subject: Subject
    outcome: Outcome
