"""Phrases that one caption can give another whole: what the subject wears, does, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tellapart_training.boost.matching import Matcher

_GROUND = """
in on at through across over along down up into inside onto outside off atop around past
"""
GROUND = frozenset(_GROUND.split())
_BESIDE = """
near beside by next behind front under underneath below above against between
"""
BESIDE = frozenset(_BESIDE.split())
STAYING = frozenset(
    ["in", "on", "at", "near", "beside", "by", "behind", "under", "outside", "along", "during"]
)
"""Prepositions that fit any doing; others ("over", "into") only the verb that they were said of."""

_CLAUSES = ("acl", "relcl", "advcl", "punct", "appos", "cc", "conj")
_ENDS = ("relcl", "advcl", "punct", "appos", "cc", "conj", "mark", "ccomp", "npadvmod")
_PRONOUNS = {
    "he": "m", "him": "m", "his": "m", "himself": "m",
    "she": "f", "her": "f", "hers": "f", "herself": "f",
}  # fmt: skip
_GENDER = {
    "man": "m", "boy": "m", "guy": "m", "gentleman": "m", "male": "m", "men": "m", "boys": "m", "guys": "m",
    "woman": "f", "girl": "f", "lady": "f", "female": "f", "women": "f", "girls": "f", "ladies": "f",
}  # fmt: skip
_NO_PLACES = ("body", "hair", "animal_wear", "meta", "colour", "posture", "stays")
_MAX_PHRASE_WORDS = 9


@dataclass(frozen=True)
class Graft:
    """Words for another caption.

    Attributes:
        kind: "modifier" (before a noun), "owned" (after the subject), "doing" (a phrase with -ing) or
            "place" (after what is done).
        words: as stated.
        anchor: index of the base's noun for a modifier, else of its subject's noun.
        keys: lemmas of the content words, by which support is counted.
        slot: what it says something about; the base takes one graft for each slot.
    """

    kind: str
    words: tuple[str, ...]
    anchor: int
    keys: frozenset[str]
    slot: str


class Phrases(Matcher):
    """Phrases that the other caption can give the base."""

    def owned(self) -> Iterator[Graft]:
        """What the subject wears, has or is covered with: "in a pink dress", "with pigtails"."""
        subject = self.other.subject
        if subject is None or self.base.subject is None:
            return
        heads = [subject.noun] if subject.noun == subject.thing else [subject.noun, subject.thing]
        for head in heads:
            for child in self.given.children(head, "prep"):
                if self.given.words[child].lower in ("in", "with"):
                    yield from self._wear_or_have(child)
            for child in self.given.children(head, "acl"):
                if self.given.words[child].lemma in ("wear", "dress", "cover"):
                    yield from self._wear_or_have(child)
        if subject.verb is not None and self.given.words[subject.verb].lower == "wearing":
            yield from self._wear_or_have(subject.verb)

    def _wear_or_have(self, start: int) -> Iterator[Graft]:
        core = self._core(start)
        if core is None or any(self.given.words[index].tag == "VBG" for index in core[1:]):
            return
        things = [index for index in core if self.given.words[index].is_noun
                  and self.given.words[index].dep not in ("compound", "amod")]  # fmt: skip
        if not things:
            return
        classes = [
            self.lexicon.garment(self.given.words[index])
            or self.lexicon.kind(self.given.words[index], "hair", "animal_wear")
            for index in things
        ]
        if not all(classes):
            return
        taken = {
            self.lexicon.garment(word) or self.lexicon.kind(word, "hair", "animal_wear")
            for word in self.own.words
        }
        taken |= {
            "wear_whole" for word in self.own.words if word.dep == "pobj" and self.lexicon.has("colour", word)
        }
        # "wearing a hat wearing red boots" is no sentence.
        if self.given.words[start].tag.startswith("VB") and {"wear", "dress"} & self.stated:
            return
        if taken & set(classes) or ("wear_whole" in taken and set(classes) & {"wear_top", "wear_bottom"}):
            return
        if "wear_whole" in classes and taken & {"wear_top", "wear_bottom"}:
            return
        if any(not self.undisputed(index) for index in things):
            return
        yield self._graft("owned", core, "+".join(sorted(classes)))

    def doings(self) -> Iterator[Graft]:
        """What the subject is said to do, as a phrase with -ing."""
        subject, mine = self.other.subject, self.base.subject
        if subject is None or mine is None:
            return
        still = mine.verb is not None and self.own.words[mine.verb].lemma == "be"
        for verb in {subject.verb, *self.given.children(subject.noun, "acl")} - {None}:
            if verb is None or self.given.words[verb].tag != "VBG":
                continue
            word = self.given.words[verb]
            if word.lemma in self.stated or self.lexicon.has("light", word) or word.lower == "wearing":
                continue
            if self.lexicon.has("posture", word) and (
                still or any(self.lexicon.has("posture", one) for one in self.own.words)
            ):
                continue
            core = self._core(verb)
            if core is None or len(core) < 2:
                continue
            things = [index for index in core if self.given.words[index].is_noun]
            if not things or not self.all_new(things):
                continue
            yield self._graft("doing", core, "doing")

    def places(self) -> Iterator[Graft]:
        """Where it happens: phrases with a preposition, of a kind that the base has none of."""
        subject = self.other.subject
        mine = self.base.subject
        if subject is None or mine is None or mine.verb is None:
            return
        same_verb = (
            subject.verb is not None
            and self.given.words[subject.verb].lemma == self.own.words[mine.verb].lemma
        )
        heads = [subject.noun] if subject.verb is None else [subject.verb, subject.noun]
        for head in heads:
            for child in self.given.children(head, "prep"):
                name = self.given.words[child].lower
                stays = head == subject.noun or self.lexicon.kind(self.given.words[head], "posture", "stays")
                told_of_it = same_verb and head == subject.verb and name in GROUND
                if not told_of_it and not (stays and name in STAYING):
                    continue
                core = self._core(child)
                if core is None:
                    continue
                things = [index for index in core if self.given.words[index].is_noun]
                if not things or not self.all_new(things) or not self._is_place(core):
                    continue
                slot = self._place_slot(core)
                if slot in self._places_taken():
                    continue
                yield self._graft("place", core, slot)

    def _is_place(self, core: Sequence[int]) -> bool:
        for index in core:
            word = self.given.words[index]
            if word.tag in ("PRP", "PRP$", "WDT", "WP"):
                return False
            if word.is_noun and (
                self.lexicon.garment(word)
                or self.lexicon.kind(
                    word, "body", "hair", "animal_wear", "meta", "colour", "posture", "stays"
                )
                or self.lexicon.is_animate(word)
            ):
                return False
        return True

    def _place_slot(self, core: Sequence[int]) -> str:
        names = {self.given.words[index].lower for index in core}
        if names & BESIDE:
            return "beside"
        return "time" if names & {"during", "night", "day", "sunset"} else "ground"

    def _places_taken(self) -> set[str]:
        found = set()
        for index, word in enumerate(self.own.words):
            if word.lower in BESIDE:
                found.add("beside")
            elif word.lower in GROUND and word.tag in ("IN", "RP", "RB"):
                leaves = [self.own.words[leaf] for leaf in self.own.children(index, "pobj")]
                if not leaves or not all(
                    self.lexicon.garment(leaf) or self.lexicon.kind(leaf, "body", "colour") for leaf in leaves
                ):
                    found.add("ground")
        return found

    def _core(self, start: int) -> list[int] | None:
        """A phrase less the clauses that hang on it; None where it has a gap, is long or is of others."""
        found = self.given.subtree(start, without=_CLAUSES)
        found = [index for index in found if index >= start]
        words = [self.given.words[index] for index in found]
        if not found or found != list(range(found[0], found[-1] + 1)) or len(found) > _MAX_PHRASE_WORDS:
            return None
        if words[-1].tag in ("IN", "DT", "CC", "TO", "JJ", "PRP$", "CD", "VBZ", "VBP", "RB"):
            return None
        if any(
            word.tag in ("VBZ", "VBP", "VBD", "MD", "EX", "WP", "WDT", "WRB", ",", ":", "PRP")
            or self.lexicon.kind(word, "meta", "relational")
            for word in words
        ):
            return None
        if sum(word.tag == "VBG" and word.dep not in ("amod", "compound") for word in words) > 1:
            return None
        # What was cut off may have belonged inside: "crossing a chain | linked bridge".
        if found[-1] + 1 < len(self.given.words) and self.given.words[found[-1] + 1].tag in (
            "VBN", "VBD", "JJ", "NN", "NNS", "HYPH", "WDT", "WP",
        ):  # fmt: skip
            return None
        return found if self._pronouns_fit(found) else None

    def _pronouns_fit(self, found: Sequence[int]) -> bool:
        """Whether "his" and "her" agree with what the base says of its subject."""
        wanted = {_PRONOUNS[word.lower] for word in map(self.given.words.__getitem__, found)
                  if word.lower in _PRONOUNS}  # fmt: skip
        if any(self.given.words[index].lower in ("their", "its", "it", "them") for index in found):
            return False
        if not wanted:
            return True
        subject = self.base.subject
        if subject is None or self.number(self.own, subject) != 1:
            return False
        known = set()
        for told in self.everyone:
            known |= {_GENDER[word.lower] for word in told.sentence.words if word.lower in _GENDER}
        for word in self.own.words:
            known |= {_PRONOUNS[word.lower]} if word.lower in _PRONOUNS else set()
        return known == wanted

    def _graft(self, kind: str, core: Sequence[int], slot: str) -> Graft:
        subject = self.base.subject
        words = [self.given.words[index] for index in core]
        return Graft(
            kind,
            tuple(map(self.spelt_inside, core)),
            subject.noun if subject is not None else 0,
            frozenset(
                word.lemma
                for word in words
                if word.tag[:2] in ("NN", "JJ", "VB", "CD") and word.lemma != "be"
            ),
            slot,
        )

    def spelt_inside(self, index: int) -> str:
        """A word as it is spelt in the middle of a sentence."""
        word = self.given.words[index]
        if self.lexicon.has("proper", word):
            return word.text.capitalize()
        mixed = not self.given.text.istitle() and not self.given.text.isupper()
        return word.text if index > 0 and mixed else word.lower
