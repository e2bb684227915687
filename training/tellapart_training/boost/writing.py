"""A sentence while words are put into it, and its spelling: articles, commas, capital, full stop."""

from __future__ import annotations

import re

from tellapart_training.boost.facts import Subject, modifiers
from tellapart_training.boost.lexicon import Lexicon
from tellapart_training.boost.parsing import Sentence, Word
from tellapart_training.boost.phrases import Graft

_ORDER = ("size", "age", "childlike", "shade", "colour")
_VOWEL = re.compile(r"(?i)^(?:[aeio]|u(?!n[ia]|s|t[ie]|k)|ho(?:nest|ur)|heir)")
_WORDS = """
while whilst as who which that where when because whose if until
"""
_SUBORDINATE = frozenset(_WORDS.split())
_CONSONANT = re.compile(r"(?i)^(?:on(?:e|ce)\b|one-|eu)")


class Draft:
    """The base caption with what is added and dropped."""

    def __init__(self, sentence: Sentence) -> None:
        self.sentence = sentence
        self.added: set[str] = set()
        """Lemmas of what was added."""
        self._before: dict[int, list[tuple[str, ...]]] = {}
        self._after: dict[int, list[tuple[str, ...]]] = {}
        self._dropped: set[int] = set()

    @property
    def length(self) -> int:
        """Words so far."""
        own = sum(word.is_word for word in self.sentence.words) - len(self._dropped)
        parts = [*self._before.values(), *self._after.values()]
        return own + sum(word != "," for groups in parts for group in groups for word in group)

    def drop(self, index: int) -> None:
        """Leave a word of the base out."""
        self._dropped.add(index)

    def insert(self, index: int, graft: Graft, *, comma: bool = False) -> None:
        """Put a graft after a word of the base."""
        words = (",", *graft.words) if comma else graft.words
        self._after.setdefault(index, []).append(words)
        self.added |= graft.keys

    def add_modifier(self, graft: Graft, lexicon: Lexicon) -> bool:
        """Put an adjective before its noun in the usual order of adjectives; whether there is room."""
        noun = graft.anchor
        own = [index for index in modifiers(self.sentence, noun) if index not in self._dropped]
        rank = _rank_of_slot(graft.slot)
        place = next((index for index in own if _rank(self.sentence.words[index], lexicon) > rank), noun)
        # Not between the parts of "black and white".
        while place != noun and self.sentence.words[place].dep == "conj":
            place = self.sentence.words[place].head
        groups = self._before.setdefault(place, [])
        if len(own) + len(groups) >= 3:
            return False
        groups.append(graft.words)
        groups.sort(key=lambda words: _rank_of_text(words, lexicon))
        self.added |= graft.keys
        return True

    def end_of_subject(self, subject: Subject, *, clause: bool) -> int:
        """The last word of the subject's noun phrase, where a phrase of it can follow.

        Args:
            subject: of the base.
            clause: whether a clause follows ("wearing ..."), which stands after "in ..." and "with ...".
        """
        end = subject.noun
        names = ("of", "in", "with") if clause else ("of",)
        for child in self.sentence.children(subject.noun, "prep"):
            if self.sentence.words[child].lower in names and child == end + 1:
                branch = self.sentence.subtree(child, without=("acl", "relcl", "punct", "appos"))
                if branch == list(range(branch[0], branch[-1] + 1)):
                    end = branch[-1]
        return end

    def end_of_clause(self, subject: Subject, *, plain: bool) -> int | None:
        """The last word of the main clause; None where somebody else's clause follows.

        Args:
            subject: of the base.
            plain: whether no other verb at all may follow the main one, as where a place is added: in "lies
                down to watch on the grass" nobody knows who is on the grass.
        """
        head = subject.verb if subject.verb is not None else subject.noun
        for word in self.sentence.words[head + 1 :]:
            if word.lower in _SUBORDINATE and word.tag in ("IN", "WP", "WDT", "WRB"):
                return None
            if word.tag in ("VBZ", "VBP", "VBD", "MD"):
                return None
            if plain and word.tag.startswith("VB") and word.dep not in ("amod", "compound"):
                return None
        return max(index for index, word in enumerate(self.sentence.words) if word.is_word)

    def text(self) -> str:
        """The sentence as it is read."""
        pieces: list[str] = []
        for index, word in enumerate(self.sentence.words):
            for group in self._before.get(index, ()):
                pieces.extend(group)
            if index not in self._dropped:
                glued = index > 0 and not self.sentence.words[index - 1].spaced and bool(pieces)
                plain = word.text if index or _keeps_capital(word) else word.lower
                if glued and not self._after.get(index - 1) and not self._before.get(index):
                    pieces[-1] += plain
                else:
                    pieces.append(plain)
            for group in self._after.get(index, ()):
                pieces.extend(group)
        return spell(pieces)


def spell(pieces: list[str]) -> str:
    """Join words into a sentence: articles by the sound that follows, commas, capital, one full stop."""
    pieces = [piece for piece in pieces if piece]
    for index, piece in enumerate(pieces[:-1]):
        if piece.lower() in ("a", "an"):
            following = pieces[index + 1].lstrip("'\"(")
            vowel = bool(_VOWEL.match(following)) and not _CONSONANT.match(following)
            pieces[index] = "an" if vowel else "a"
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(pieces))
    text = re.sub(r"(?:\s*,)+", ",", text).strip(" ,.;:!?")
    return text[:1].upper() + text[1:] + "."


def _keeps_capital(word: Word) -> bool:
    return word.tag in ("NNP", "NNPS") and word.text[:1].isupper()


def _rank(word: Word, lexicon: Lexicon) -> int:
    if word.dep in ("compound", "nmod") or word.tag == "NN":
        return 6
    slot = lexicon.kind(word, *_ORDER)
    return _ORDER.index(slot) + 1 if slot else 5 if word.tag in ("VBN", "VBG") else 2


def _rank_of_slot(slot: str) -> int:
    name = slot.split(":", 1)[1]
    return 6 if name == "compound" else _ORDER.index(name) + 1 if name in _ORDER else 2


def _rank_of_text(words: tuple[str, ...], lexicon: Lexicon) -> int:
    for place, name in enumerate(_ORDER, start=1):
        if any(word in lexicon.classes[name] for word in words):
            return place
    return 5
