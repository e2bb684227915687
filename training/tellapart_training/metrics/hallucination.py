"""Object hallucination after CHAIR (Rohrbach et al. 2018), from words alone.

CHAIR asks whether the objects that a caption names are in the image, and knows what is in the image from
labels and human captions of COCO. We have captions only, so an object counts as there when any human caption
of the image names it, under any of its synonyms (objects.txt, our own list). What nobody mentioned counts as
invented, even where it is in the photo: read the figures beside those of human captions scored the same way.

Concepts form lines of descent, from person to child to girl. A broader word is borne out by any narrower one
("person" by "a girl"). A narrower word is borne out by a broader one as long as the humans name no other kind
of it: "man" holds where they say "people" or "surfer" alone, and not where they speak of a woman and of
people. A concept counts once in a caption, so that repeating what is there cannot thin out what is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tellapart.errors import DataError

Words = Sequence[str]
NOTHING = "nothing"
"""Concept of phrases that name no object, such as "the camera" that people smile at."""

_LIST = Path(__file__).with_name("objects.txt")


@dataclass(frozen=True)
class ObjectList:
    """Object concepts, their words, and which concept is a kind of which.

    Attributes:
        concept_of: phrase, as words, to concept.
        broader: all concepts above each concept, itself left out.
        longest: words in the longest phrase.
    """

    concept_of: Mapping[tuple[str, ...], str]
    broader: Mapping[str, frozenset[str]]
    longest: int

    @classmethod
    def load(cls, path: Path | None = None) -> ObjectList:
        """Read a list; None is the one that is part of this package.

        Raises:
            DataError: a line that cannot be read, a word of two concepts, or a broader concept that is absent
                or leads in a circle; names the line.
        """
        path = path or _LIST
        concept_of: dict[tuple[str, ...], str] = {}
        parents: dict[str, tuple[str, ...]] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            head, colon, tail = line.partition(":")
            name, *above = head.replace("<", " ").split() or [""]
            if not colon or not tail.split() or not name or name in parents:
                raise DataError(
                    f"{path}:{number}: expected 'concept < broader: words', each concept once, got {line!r}"
                )
            parents[name] = tuple(above)
            for word in tail.split():
                phrase = tuple(word.split("_"))
                if phrase in concept_of:
                    raise DataError(
                        f"{path}:{number}: {word!r} already stands for {concept_of[phrase]}; keep one"
                    )
                concept_of[phrase] = name
        broader = {name: _all_above(name, parents, path) for name in parents}
        return cls(concept_of, broader, max(map(len, concept_of), default=1))

    def named(self, words: Words) -> tuple[str, ...]:
        """Concepts that a caption names, each once, in order.

        Args:
            words: as `metric_words` makes them; the longest phrase wins, and a hyphenated word that the list
                does not know is taken apart ("snow-covered" names snow).
        """
        words = [part for word in words for part in self._parts(word)]
        found: dict[str, None] = {}
        start = 0
        while start < len(words):
            step = 1
            for length in range(min(self.longest, len(words) - start), 0, -1):
                concept = self.concept_of.get(tuple(words[start : start + length]))
                if concept is not None:
                    step = length
                    if concept != NOTHING:
                        found[concept] = None
                    break
            start += step
        return tuple(found)

    def unsupported(self, words: Words, references: Sequence[Words]) -> tuple[str, ...]:
        """Concepts that a caption names and no reference bears out, in order.

        Args:
            words: of the caption.
            references: words of each human caption of its image.
        """
        there = frozenset(concept for text in references for concept in self.named(text))
        return tuple(concept for concept in self.named(words) if not self._supported(concept, there))

    def _supported(self, concept: str, there: frozenset[str]) -> bool:
        if concept in there or any(concept in self.broader[other] for other in there):
            return True
        # What is named beneath a broader concept says which kind was meant; without it the kind is open.
        return any(
            above in there and not any(above in self.broader[other] for other in there)
            for above in self.broader[concept]
        )

    def _parts(self, word: str) -> list[str]:
        whole = "-" not in word or (word,) in self.concept_of
        return [word] if whole else [part for part in word.split("-") if part]


@dataclass(frozen=True)
class Hallucination:
    """Counts over a set of captions.

    Attributes:
        captions: how many.
        objects: concepts that they name, once for each caption.
        invented: those of them that no reference bears out.
        captions_with_invented: captions that name at least one such.
    """

    captions: int
    objects: int
    invented: int
    captions_with_invented: int

    def figures(self) -> dict[str, float]:
        """`chair_i` (share of named objects), `chair_s` (share of captions), `objects_named` per caption."""
        return {
            "chair_i": self.invented / max(1, self.objects),
            "chair_s": self.captions_with_invented / max(1, self.captions),
            "objects_named": self.objects / max(1, self.captions),
        }


def object_hallucination(
    captions: Sequence[Words], references: Sequence[Sequence[Words]], *, objects: ObjectList | None = None
) -> Hallucination:
    """Count the objects that captions name and those that they invent.

    Args:
        captions: words of one caption for each image.
        references: for each image its references as words; fewer references leave more unmentioned, so only
            figures against equally many compare.
        objects: the list; None reads the one of this package.
    """
    objects = objects or ObjectList.load()
    named = [len(objects.named(words)) for words in captions]
    invented = [
        len(objects.unsupported(words, texts)) for words, texts in zip(captions, references, strict=True)
    ]
    return Hallucination(len(captions), sum(named), sum(invented), sum(map(bool, invented)))


def _all_above(name: str, parents: Mapping[str, tuple[str, ...]], path: Path) -> frozenset[str]:
    """Every concept above one, through all of its parents."""
    found: set[str] = set()
    waiting = list(parents[name])
    while waiting:
        above = waiting.pop()
        if above not in parents or above == name:
            raise DataError(
                f"{path}: {name!r} is under {above!r}, which is absent or itself; correct its line"
            )
        if above not in found:
            found.add(above)
            waiting.extend(parents[above])
    return frozenset(found)
