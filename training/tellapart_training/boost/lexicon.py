"""Classes of words that the blend and the checks go by, read from lexicon.txt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tellapart.errors import DataError
from tellapart_training.boost.parsing import Sentence, Word
from tellapart_training.metrics.hallucination import NOTHING, ObjectList

_FILE = Path(__file__).with_name("lexicon.txt")
_NUMBER_WORDS = """
one two three four five six seven eight nine ten eleven twelve
"""
_NUMBERS = _NUMBER_WORDS.split()
MANY = 99
"""Stands for a plural without a number."""


@dataclass(frozen=True)
class Lexicon:
    """Word classes by name, and the objects list of the hallucination metric.

    Attributes:
        classes: class to its words.
        objects: concepts of nouns, and which is a kind of which.
    """

    classes: Mapping[str, frozenset[str]]
    objects: ObjectList

    def has(self, name: str, word: Word) -> bool:
        """Whether a word, as written or as its lemma, is of a class."""
        return word.lower in self.classes[name] or word.lemma in self.classes[name]

    def kind(self, word: Word, *names: str) -> str:
        """The first of some classes that a word is of; "" for none."""
        return next((name for name in names if self.has(name, word)), "")

    def garment(self, word: Word) -> str:
        """The class of a thing to wear; "" for other words."""
        return self.kind(word, *(name for name in self.classes if name.startswith("wear_")))

    def concept(self, word: Word) -> str:
        """The object that a noun names, in the list of the hallucination metric; "" for none."""
        for form in (word.lower, word.lemma):
            concept = self.objects.concept_of.get((form,), "")
            if concept and concept != NOTHING:
                return concept
        return ""

    def same_thing(self, one: Word, other: Word) -> bool:
        """Whether two nouns can name one thing: equal, or one a kind of the other ("girl" and "child")."""
        if one.lemma == other.lemma or one.lower == other.lower:
            return True
        first, second = self.concept(one), self.concept(other)
        if not first or not second:
            return False
        above = self.objects.broader
        return first == second or first in above[second] or second in above[first]

    def is_animate(self, word: Word) -> bool:
        """A person or an animal."""
        concept = self.concept(word)
        above = self.objects.broader.get(concept, frozenset())
        return concept in ("person", "animal") or bool({"person", "animal"} & set(above))

    def is_person(self, word: Word) -> bool:
        """A person."""
        concept = self.concept(word)
        return concept == "person" or "person" in self.objects.broader.get(concept, frozenset())

    def number(self, word: Word) -> int | None:
        """The value of a number word up to twelve or of digits; None for other words."""
        if word.lower in _NUMBERS:
            return _NUMBERS.index(word.lower) + 1
        return int(word.lower) if word.lower.isascii() and word.lower.isdigit() else None

    def count(self, sentence: Sentence, noun: int) -> int:
        """How many a noun stands for: 1, the number before it, or `MANY` for a bare plural or a group."""
        for child in sentence.children(noun, "nummod"):
            number = self.number(sentence.words[child])
            if number is not None:
                return number
        return MANY if sentence.words[noun].is_plural else 1

    def thing(self, sentence: Sentence, noun: int) -> int:
        """The noun that matters: of "a group of people" the people, of "front of a car" the car."""
        while self.kind(sentence.words[noun], "quantity", "part"):
            inner = [
                leaf
                for child in sentence.children(noun, "prep")
                if sentence.words[child].lower == "of"
                for leaf in sentence.children(child, "pobj")
            ]
            if not inner:
                break
            noun = inner[0]
        return noun


@cache
def load_lexicon(path: Path = _FILE) -> Lexicon:
    """Read the classes.

    Raises:
        DataError: a line that is no class.
    """
    classes: dict[str, set[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, words = line.partition(":")
        if not colon or not words.split():
            raise DataError(f"{path}:{number}: expected 'class: words', got {line!r}")
        classes.setdefault(name.strip(), set()).update(words.split())
    return Lexicon({name: frozenset(words) for name, words in classes.items()}, ObjectList.load())
