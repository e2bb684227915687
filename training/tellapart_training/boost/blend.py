"""The extractive blend: one human caption, and grafted into it what the others say of the same things.

No language model takes part and no word is made up: every word of the result stands in a human caption of the
image. Order of work: pick the most informative caption that disagrees with nobody, drop a colour that most
contradict, then add adjectives, what the subject wears, a doing and a place, best supported first, within the
longest length allowed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tellapart_training.boost.facts import (
    Subject,
    colours,
    content_lemmas,
    content_words,
    majority,
    modifiers,
    nouns,
    persons_named,
)
from tellapart_training.boost.grafts import find_grafts
from tellapart_training.boost.lexicon import Lexicon
from tellapart_training.boost.matching import Told
from tellapart_training.boost.parsing import Sentence, Word
from tellapart_training.boost.phrases import Graft
from tellapart_training.boost.writing import Draft

_MINORITY = 3.0
_NO_SENTENCE = 1.5
_NOT_UNDERSTOOD = 100.0
_GRAFTED = 0.7
_TRIED = 3
_LIMITS = {"modifier": 4, "owned": 1, "doing": 1, "place": 2}


@dataclass(frozen=True, kw_only=True)
class BlendOptions:
    """How much is grafted."""

    max_words: int = 32
    """Longest caption, in words; a base that is longer stays as it is."""
    agreement: int = 1
    """How many captions beside the base must speak of what is grafted."""


@dataclass(frozen=True)
class Blend:
    """A blended caption.

    Attributes:
        text: one sentence with a full stop.
        base: index of the caption it grew from, among the texts given.
        grafts: what was added, in order, as text.
        gained: content words that the grafts brought.
    """

    text: str
    base: int
    grafts: tuple[str, ...] = field(default=())
    gained: int = 0


def blend_captions(
    sentences: Sequence[Sentence], *, lexicon: Lexicon, options: BlendOptions | None = None, limit: int = 1
) -> list[Blend]:
    """Blend the captions of one image.

    Args:
        sentences: parsed captions of the image, at least one.
        lexicon: word classes.
        options: how much is grafted.
        limit: how many blends at most, each from another base; equal ones come once.

    Returns:
        At least one blend, the one from the best base first; nothing when no caption is fit to be a base.
    """
    options = options or BlendOptions()
    told = [Told.of(sentence, lexicon) for sentence in sentences]
    scores = [_worth(index, told, lexicon) for index in range(len(told))]
    order = sorted(range(len(told)), key=lambda index: (-scores[index], index))
    grown = [(_grow(base, told, lexicon, options), base) for base in order[: max(limit, _TRIED)]]
    # What a base can take counts too, a little less than what it says itself.
    worth = {base: scores[base] + _GRAFTED * blend.gained for blend, base in grown}
    found: dict[str, Blend] = {}
    for blend, base in sorted(grown, key=lambda pair: (-worth[pair[1]], pair[1])):
        if len(found) < limit and (not found or scores[base] > 0):
            found.setdefault(blend.text.lower(), blend)
    return list(found.values())


def _worth(index: int, told: Sequence[Told], lexicon: Lexicon) -> float:
    """Content words of a caption, less what speaks against growing from it."""
    own = told[index]
    worth = float(len(set(content_words(own.sentence))))
    if own.subject is None:
        return worth - _NOT_UNDERSTOOD
    if not own.subject.finite:
        worth -= _NO_SENTENCE
    worth -= _MINORITY * len(_minority_colours(own, told, lexicon))
    counts = [persons_named(one.sentence, lexicon) for one in told]
    usual = majority(counts)
    if usual is not None and counts[index] != usual:
        worth -= _MINORITY
    others: Counter[str] = Counter()
    for place, one in enumerate(told):
        if place != index:
            others.update(content_lemmas(one.sentence))
    heads = {own.sentence.words[noun].lemma for noun in nouns(own.sentence)}
    return worth - 0.4 * sum(others[lemma] == 0 for lemma in heads)


def _minority_colours(own: Told, told: Sequence[Told], lexicon: Lexicon) -> list[int]:
    """Colour words that more captions contradict than repeat."""
    found: list[int] = []
    for noun in nouns(own.sentence):
        mine = colours(own.sentence, noun, lexicon)
        if not mine:
            continue
        word = own.sentence.words[noun]
        if sum(other.lemma == word.lemma for other in own.sentence.words) > 1:
            continue  # "the black dog and the brown dog": each has its colour
        against = agreed = 0
        for other in told:
            if other is own:
                continue
            for index in nouns(other.sentence):
                if other.sentence.words[index].lemma == word.lemma:
                    theirs = colours(other.sentence, index, lexicon)
                    against += bool(theirs) and not theirs & mine
                    agreed += bool(theirs & mine)
        if against > agreed:
            found.extend(
                index
                for index in modifiers(own.sentence, noun)
                if lexicon.has("colour", own.sentence.words[index])
            )
    return found


def _grow(base: int, told: Sequence[Told], lexicon: Lexicon, options: BlendOptions) -> Blend:
    own = told[base]
    draft = Draft(own.sentence)
    for index in _minority_colours(own, told, lexicon):
        if not own.sentence.children(index) and own.sentence.words[index].dep == "amod":
            draft.drop(index)
    if own.subject is None:
        return Blend(draft.text(), base)
    chosen: list[str] = []
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    for graft in _ranked(base, told, lexicon, options):
        if graft.slot in taken or counts[graft.kind] >= _LIMITS[graft.kind]:
            continue
        if draft.length + len(graft.words) > options.max_words or graft.keys & draft.added:
            continue
        if _place(draft, graft, own, own.subject, lexicon):
            taken.add(graft.slot)
            counts[graft.kind] += 1
            chosen.append(" ".join(graft.words))
    return Blend(draft.text(), base, tuple(chosen), len(draft.added))


def _ranked(base: int, told: Sequence[Told], lexicon: Lexicon, options: BlendOptions) -> list[Graft]:
    """Grafts of all other captions: what more people mention first, then what says more."""
    lemmas = [content_lemmas(one.sentence) for one in told]
    found: dict[tuple[str, tuple[str, ...], int], tuple[float, Graft]] = {}
    for place, other in enumerate(told):
        if place == base:
            continue
        for graft in find_grafts(told[base], other, told, lexicon):
            support = sum(graft.keys <= lemmas[one] for one in range(len(told)) if one != base)
            if support >= options.agreement:
                found.setdefault((graft.kind, graft.words, graft.anchor), (support, graft))
    ranked = sorted(found.values(), key=lambda pair: (-pair[0], -len(pair[1].keys), pair[1].words))
    return [graft for _, graft in ranked]


def _place(draft: Draft, graft: Graft, own: Told, subject: Subject, lexicon: Lexicon) -> bool:
    """Put a graft where it reads well; whether there was such a place."""
    if graft.kind == "modifier":
        return draft.add_modifier(graft, lexicon)
    if graft.kind == "owned":
        clause = graft.words[0] not in ("in", "with")
        draft.insert(draft.end_of_subject(subject, clause=clause), graft)
        return True
    end = draft.end_of_clause(subject, plain=graft.kind == "place")
    if end is None:
        return False
    if graft.kind == "place":
        draft.insert(end, graft)
        return True
    if _could_be_read_as_another(own.sentence, subject, end, lexicon):
        return False
    draft.insert(end, graft, comma=True)
    return True


def _could_be_read_as_another(sentence: Sentence, subject: Subject, end: int, lexicon: Lexicon) -> bool:
    """Whether a doing at the end of a clause could be taken for somebody else's."""
    last: Word | None = None
    for index in nouns(sentence):
        if subject.thing < index <= end:
            last = sentence.words[index]
            if lexicon.is_animate(last):
                return True
    return last is None and subject.verb is None
