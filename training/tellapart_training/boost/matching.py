"""Whether two captions of an image speak of the same one, and where captions disagree about it.

In doubt they do not: a caption that stays short is better than one that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tellapart_training.boost.facts import Subject, colours, find_subject, modifiers, nouns, owner
from tellapart_training.boost.lexicon import MANY, Lexicon
from tellapart_training.boost.parsing import Sentence, Word

_EACH = frozenset(["each", "one", "both", "another", "other", "others", "either"])
"""Words of captions that tell several apart, whose facts then are not facts of all."""


@dataclass(frozen=True)
class Told:
    """A caption with what is known of it."""

    sentence: Sentence
    subject: Subject | None

    @classmethod
    def of(cls, sentence: Sentence, lexicon: Lexicon) -> Told:
        """Find the subject."""
        return cls(sentence, find_subject(sentence, lexicon))


class Matcher:
    """A pair of captions: the base, and another one that may give it something.

    Args:
        base: the caption that grows.
        other: the one that gives.
        everyone: all captions of the image, to see where they disagree.
        lexicon: word classes.
    """

    def __init__(self, base: Told, other: Told, everyone: Sequence[Told], lexicon: Lexicon) -> None:
        self.base, self.other, self.everyone, self.lexicon = base, other, everyone, lexicon
        self.own, self.given = base.sentence, other.sentence
        self.stated = {word.lemma for word in self.own.words} | {word.lower for word in self.own.words}

    def same_subject(self) -> bool:
        """Whether both captions are about the same one, as far as can be told."""
        mine, theirs = self.base.subject, self.other.subject
        if mine is None or theirs is None:
            return False
        if self._joined(self.own, mine) or self._joined(self.given, theirs):
            return False
        if any(word.lower in _EACH for word in (*self.own.words, *self.given.words)):
            return False
        one, two = self.own.words[mine.thing], self.given.words[theirs.thing]
        if not self.lexicon.same_thing(one, two):
            return False
        numbers = (self.number(self.own, mine), self.number(self.given, theirs))
        if numbers[0] != numbers[1] and (1 in numbers or MANY not in numbers):
            return False
        # With several who could be meant, the same word must be used, and once in each caption.
        if numbers[0] == 1 and self._several() and one.lemma != two.lemma:
            return False
        return self._alone(self.own, mine.thing) and self._alone(self.given, theirs.thing)

    def number(self, sentence: Sentence, subject: Subject) -> int:
        """How many a caption is about; a group of one noun is `MANY`."""
        count = self.lexicon.count(sentence, subject.thing)
        return MANY if subject.thing != subject.noun and count == 1 else count

    def _joined(self, sentence: Sentence, subject: Subject) -> bool:
        return bool(
            sentence.children(subject.noun, "conj", "appos") or sentence.children(subject.thing, "conj")
        )

    def _alone(self, sentence: Sentence, noun: int) -> bool:
        """Whether no other noun of a caption could name the same kind of thing."""
        word = sentence.words[noun]
        return not any(
            self.lexicon.same_thing(sentence.words[index], word) for index in nouns(sentence) if index != noun
        )

    def _several(self) -> bool:
        """Whether any caption speaks of more than one who could be the subject."""
        subject = self.base.subject
        if subject is None:
            return True
        own = self.own.words[subject.thing]
        for told in self.everyone:
            found = [
                index for index in nouns(told.sentence)
                if self.lexicon.same_thing(told.sentence.words[index], own)
            ]  # fmt: skip
            if len(found) > 1 or any(self.lexicon.count(told.sentence, index) > 1 for index in found):
                return True
        return False

    def partner(self, noun: int) -> int | None:
        """The base's noun that names what a noun of the other caption names."""
        word = self.given.words[noun]
        subjects = self.base.subject, self.other.subject
        if subjects[1] is not None and subjects[1].thing == noun and subjects[0] is not None:
            if self.same_subject():
                return subjects[0].thing
            return None
        found = [index for index in nouns(self.own) if self.own.words[index].lemma == word.lemma]
        if len(found) != 1 or not self._alone(self.own, found[0]) or not self._alone(self.given, noun):
            return None
        partner = found[0]
        counts = self.lexicon.count(self.own, partner), self.lexicon.count(self.given, noun)
        if counts[0] != counts[1] or self._named_twice(word.lemma):
            return None
        return partner if self._same_owner(partner, noun) else None

    def _named_twice(self, lemma: str) -> bool:
        """Whether some caption speaks of two such things, or of another number of them."""
        counts: set[int] = set()
        for told in self.everyone:
            found = [index for index in nouns(told.sentence) if told.sentence.words[index].lemma == lemma]
            if len(found) > 1:
                return True
            counts.update(self.lexicon.count(told.sentence, index) for index in found)
        return len(counts) > 1

    def _same_owner(self, partner: int, noun: int) -> bool:
        """Whether what people wear or have is the same person's in both captions."""
        word = self.own.words[partner]
        if not self.lexicon.garment(word) and not self.lexicon.kind(word, "body", "hair", "animal_wear"):
            return True
        mine, theirs = owner(self.own, partner), owner(self.given, noun)
        if mine is None or theirs is None:
            return False
        if self.lexicon.garment(self.own.words[mine]) and self.lexicon.garment(self.given.words[theirs]):
            return self.own.words[mine].lemma == self.given.words[theirs].lemma
        mine, theirs = self.lexicon.thing(self.own, mine), self.lexicon.thing(self.given, theirs)
        return self.lexicon.same_thing(self.own.words[mine], self.given.words[theirs])

    def is_told(self, word: Word) -> bool:
        """Whether the base has a word or one of its family: "snow" is told by "snowy" and "snow-covered"."""
        if word.lower in self.stated or word.lemma in self.stated:
            return True
        stem = word.lemma[:-1]
        return len(stem) > 2 and any(
            one.startswith(stem) or (len(one) > 3 and word.lemma.startswith(one)) for one in self.stated
        )

    def undisputed(self, noun: int) -> bool:
        """Whether nobody gives a thing a colour that this caption does not give it."""
        word = self.given.words[noun]
        mine = colours(self.given, noun, self.lexicon)
        for told in self.everyone:
            for index in nouns(told.sentence):
                if self.lexicon.same_thing(told.sentence.words[index], word):
                    theirs = colours(told.sentence, index, self.lexicon)
                    if theirs and not theirs <= mine:
                        return False
        return True

    def otherwise_said(self, noun: int, slot: str, value: str) -> bool:
        """Whether anybody gives a thing another adjective of the same class."""
        word = self.given.words[noun]
        return any(
            self.lexicon.has(slot, told.sentence.words[child]) and told.sentence.words[child].lower != value
            for told in self.everyone
            for index in nouns(told.sentence)
            if self.lexicon.same_thing(told.sentence.words[index], word)
            for child in modifiers(told.sentence, index)
        )

    def all_new(self, things: Sequence[int]) -> bool:
        """Whether the base speaks of none of these things, nor of one of their kind."""
        for index in things:
            word = self.given.words[index]
            if self.lexicon.has("part", word):
                continue
            if self.is_told(word):
                return False
            if any(self.lexicon.same_thing(self.own.words[own], word) for own in nouns(self.own)):
                return False
        return True
