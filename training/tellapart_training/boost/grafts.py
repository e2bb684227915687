"""What one caption can give another: adjectives, and whole phrases.

A graft is words as somebody wrote them, with the place in the base where they go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tellapart_training.boost.facts import colours, modifiers, nouns
from tellapart_training.boost.lexicon import Lexicon
from tellapart_training.boost.matching import Told
from tellapart_training.boost.parsing import Word
from tellapart_training.boost.phrases import Graft, Phrases

_BEFORE = ("DT", "PRP$", "JJ", "CD", "IN", "CC")


def find_grafts(base: Told, other: Told, everyone: Sequence[Told], lexicon: Lexicon) -> Iterator[Graft]:
    """Everything that another caption can give the base.

    Args:
        base: the caption that grows.
        other: the one that gives.
        everyone: all captions of the image, to see where they disagree.
        lexicon: word classes.
    """
    finder = _Finder(base, other, everyone, lexicon)
    yield from finder.modifiers()
    if finder.same_subject():
        yield from finder.owned()
        yield from finder.doings()
        yield from finder.places()


class _Finder(Phrases):
    """Phrases, and adjectives of nouns that both captions name."""

    def modifiers(self) -> Iterator[Graft]:
        """Adjectives and compounds of nouns that both captions name."""
        for noun in nouns(self.given):
            word = self.given.words[noun]
            if self.lexicon.kind(word, "part", "quantity", "meta") or word.tag.startswith("NNP"):
                continue
            partner = self.partner(noun)
            if partner is None:
                continue
            for child in self.given.children(noun, "amod", "compound"):
                graft = self._modifier(noun, child, partner)
                if graft is not None:
                    yield graft

    def _modifier(self, noun: int, child: int, partner: int) -> Graft | None:
        branch = self.given.subtree(child)
        head = self.given.words[child]
        words = [self.given.words[index] for index in branch]
        plain = all(word.tag in ("JJ", "VBN", "VBG", "NN", "CC") for word in words)
        if not plain or branch != list(range(branch[0], branch[-1] + 1)) or branch[-1] >= noun:
            return None
        following = self.given.words[branch[-1] + 1]
        if head.tag in ("VBG", "RB") and following.tag == "JJ":  # "soaking wet"
            return None
        # "stand juggling boxes": what they do, not what the boxes are like.
        if head.tag == "VBG" and (branch[0] == 0 or self.given.words[branch[0] - 1].tag not in _BEFORE):
            return None
        if len(words) == 1 and self.lexicon.has("unfinished", head):
            return None
        if any(self.is_told(word) for word in words if word.tag != "CC"):
            return None
        if any(part in self.stated for word in words if "-" in word.text for part in word.lower.split("-")):
            return None
        if len(words) > 3 or any(
            self.lexicon.kind(word, "relational", "meta", "part", "quantity")
            or not word.is_word
            for word in words if word.tag != "CC"
        ):  # fmt: skip
            return None
        slot = self.lexicon.kind(head, "colour", "size", "age", "shade")
        slot = slot or ("compound" if head.dep == "compound" or head.tag == "NN" else f"like:{head.lemma}")
        if slot == "compound" and (head.tag != "NN" or len(words) > 1):
            return None
        # "German shepherd dog", "mountain climber": parts of a name of its own, not what the thing is like.
        siblings = self.given.children(noun, "compound", "nmod")
        if siblings and (siblings != [child] or self.lexicon.is_person(self.given.words[noun])):
            return None
        taken = [self.own.words[index] for index in modifiers(self.own, partner)]
        if any(self._same_kind(slot, head, one) for one in taken):
            return None
        if slot == "compound" and any(one.dep == "compound" or one.tag == "NN" for one in taken):
            return None
        if slot == "colour" and not self.undisputed(noun):
            return None
        # A blond woman's hair may be called brown by the next one.
        if (
            slot == "colour"
            and self.lexicon.is_person(self.own.words[partner])
            and any(self.lexicon.has("hair", one) for one in self.own.words)
        ):
            return None
        # "dark" of "dark brown", and people who are "long", mean something else when they stand elsewhere.
        if slot == "shade" and (
            colours(self.given, noun, self.lexicon) or colours(self.own, partner, self.lexicon)
        ):
            return None
        if head.lower == "long" and self.lexicon.is_animate(self.own.words[partner]):
            return None
        if slot in ("size", "age") and self.otherwise_said(noun, slot, head.lower):
            return None
        if len(taken) >= 3:
            return None
        return Graft(
            "modifier",
            tuple(self.spelt_inside(index) for index in branch),
            partner,
            frozenset(word.lemma for word in words if word.tag != "CC"),
            f"{partner}:{'childlike' if self.lexicon.has('childlike', head) else slot}",
        )

    def _same_kind(self, slot: str, one: Word, other: Word) -> bool:
        """Whether two adjectives say the same kind of thing: two colours, or "little" beside "young"."""
        if slot in ("colour", "size", "age", "shade") and self.lexicon.has(slot, other):
            return True
        return any(
            self.lexicon.has(name, one) and self.lexicon.has(name, other) for name in ("childlike", "bare")
        )
