"""The part of the checks that compares facts: words, attributes, counts, relations, conflicts.

Each function returns why a caption fails, or "". Nouns may be told by a word for the same thing or for a kind
of it: "a person" stands where somebody wrote "a girl", but "a girl" not where they all wrote "a person".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tellapart_training.boost.facts import colours, find_subject, majority, modifiers, nouns
from tellapart_training.boost.lexicon import MANY, Lexicon
from tellapart_training.boost.parsing import Sentence, Word

_PREPOSITIONS = {
    "under": "under", "beneath": "under", "underneath": "under", "below": "under",
    "above": "above", "behind": "behind", "front": "front", "left": "left", "right": "right",
}  # fmt: skip
"""Where mixing up matters. "On", "in", "at" and "near" are used for one another too freely to be judged."""

_FREE_WORDS = """
while as outside inside together also very not then there here up down away
"""
_FREE = frozenset(_FREE_WORDS.split())


def words_fail(candidate: Sentence, sources: Sequence[Sentence], lexicon: Lexicon) -> str:
    """A content word that no source bears out."""
    stated = set[str]()
    for source in sources:
        for word in source.words:
            stated |= {word.lower, word.lemma, *word.lower.split("-")}
    things = [source.words[index] for source in sources for index in nouns(source)]
    for word in candidate.words:
        if word.tag[:2] not in ("NN", "JJ", "VB", "RB", "CD") or not word.is_word:
            continue
        if word.dep in ("aux", "auxpass") or word.lemma in _FREE or word.lower in _FREE:
            continue
        if word.lower in stated or word.lemma in stated or set(word.lower.split("-")) <= stated:
            continue
        if word.tag.startswith("VB") and (
            lexicon.has("light", word) or (word.lemma == "wear" and any(map(lexicon.garment, things)))
        ):
            continue
        if word.tag == "CD" and lexicon.number(word) is not None:
            continue  # counts have a rule of their own
        if word.is_noun and any(_broader(lexicon, word, thing) for thing in things):
            continue
        return f"nobody mentions {word.text!r}"
    return ""


def _broader(lexicon: Lexicon, word: Word, thing: Word) -> bool:
    mine, theirs = lexicon.concept(word), lexicon.concept(thing)
    return bool(mine) and (mine == theirs or mine in lexicon.objects.broader.get(theirs, frozenset()))


def _said_of(sentence: Sentence, lexicon: Lexicon) -> Iterator[tuple[Word, Word]]:
    """(noun, adjective) as a sentence joins them, before the noun or after "is"."""
    for noun in nouns(sentence):
        for index in modifiers(sentence, noun):
            yield sentence.words[noun], sentence.words[index]
        for index in sentence.children(noun, "acl"):
            yield sentence.words[noun], sentence.words[index]
    for index, word in enumerate(sentence.words):
        if word.dep in ("acomp", "oprd") or (word.dep == "ROOT" and word.tag.startswith("JJ")):
            verb = word.head if word.head != index else index
            for subject in sentence.children(verb, "nsubj"):
                yield sentence.words[subject], word


def attributes_fail(candidate: Sentence, sources: Sequence[Sentence], lexicon: Lexicon) -> str:
    """An adjective at a noun at which no source has it."""
    known = [pair for source in sources for pair in _said_of(source, lexicon)]
    pairs = {
        (one.lower, other.lower)
        for source in sources
        for one, other in zip(source.words, source.words[1:], strict=False)
    }
    forms = {part for source in sources for word in source.words for part in word.lower.split("-")}
    for noun in nouns(candidate):
        thing = candidate.words[lexicon.thing(candidate, noun)]
        for index in modifiers(candidate, noun):
            word = candidate.words[index]
            if word.tag[:2] not in ("JJ", "VB") or lexicon.kind(word, "relational", "quantity"):
                continue
            if "-" in word.text and set(word.lower.split("-")) <= forms:
                continue
            if (word.lower, candidate.words[index + 1].lower) in pairs:
                continue  # as somebody wrote it, whatever the parser makes of it
            if not any(
                other.lower == word.lower and (lexicon.same_thing(one, thing) or one.lower == thing.lower)
                for one, other in known
            ):
                return f"nobody calls the {thing.text} {word.text!r}"
    return ""


def counts_fail(
    candidate: Sentence, humans: Sequence[Sentence], vision: Sequence[Sentence], lexicon: Lexicon
) -> str:
    """A number of things that no human caption gives, nor an expert where people give none."""
    for noun in nouns(candidate):
        thing = lexicon.thing(candidate, noun)
        mine = _number(candidate, thing, lexicon)
        if mine is None:
            continue
        word = candidate.words[thing]
        told = [number for source in humans for number in _numbers_of(source, word, lexicon)]
        exact = [number for number in told if number != MANY]
        if mine in told or (not exact and any(mine in _numbers_of(one, word, lexicon) for one in vision)):
            continue
        return f"nobody counts {mine} {word.text}"
    return ""


def _number(sentence: Sentence, noun: int, lexicon: Lexicon) -> int | None:
    for child in sentence.children(noun, "nummod"):
        number = lexicon.number(sentence.words[child])
        if number is not None and number > 1:
            return number
    return None


def _numbers_of(source: Sentence, word: Word, lexicon: Lexicon) -> set[int]:
    """How many of a thing a source speaks of: each mention, and all together."""
    counts = [
        lexicon.count(source, noun) for noun in nouns(source) if lexicon.same_thing(source.words[noun], word)
    ]
    return {*counts, min(MANY, sum(counts))} if counts else set()


def relations_fail(candidate: Sentence, sources: Sequence[Sentence], lexicon: Lexicon) -> str:
    """Somebody who does what only another does, or a place that nobody gives."""
    doers = [pair for source in sources for pair in _doers(source, lexicon)]
    for doer, verb in _doers(candidate, lexicon):
        same = [one for one, other in doers if other.lemma == verb.lemma]
        if not lexicon.is_animate(doer) or not all(map(lexicon.is_animate, same)):
            continue  # a parse gone astray ("boots standing") is likelier than boots that stand
        if same and not any(lexicon.same_thing(one, doer) for one in same):
            return f"it is not the {doer.text} who is said to {verb.lemma}"
    places = {place for source in sources for place in _places(source, lexicon)}
    for name, thing in _places(candidate, lexicon):
        if not any(name == other and thing == what for other, what in places):
            return f"nobody puts anything {name} the {thing}"
    return ""


def _doers(sentence: Sentence, lexicon: Lexicon) -> Iterator[tuple[Word, Word]]:
    for index, word in enumerate(sentence.words):
        if not word.tag.startswith("VB") or lexicon.has("light", word):
            continue
        subjects = [one for one in sentence.children(index, "nsubj") if sentence.words[one].is_noun]
        if word.dep == "acl" and word.tag == "VBG" and sentence.words[word.head].is_noun:
            subjects.append(word.head)
        for subject in subjects:
            yield sentence.words[lexicon.thing(sentence, subject)], word


def _places(sentence: Sentence, lexicon: Lexicon) -> Iterator[tuple[str, str]]:
    for index, word in enumerate(sentence.words):
        name = _PREPOSITIONS.get(word.lower)
        if name is None:
            continue
        below = sentence.subtree(index, without=("acl", "relcl", "conj", "amod", "compound"))
        things = [leaf for leaf in below if leaf > index and sentence.words[leaf].is_noun]
        if things:
            thing = sentence.words[things[0]]
            yield name, lexicon.concept(thing) or thing.lemma


def _named(sentence: Sentence, word: Word) -> list[int]:
    return [noun for noun in nouns(sentence) if sentence.words[noun].lemma == word.lemma]


def conflict_fails(candidate: Sentence, humans: Sequence[Sentence], lexicon: Lexicon) -> str:
    """Facts that exclude each other inside the caption, or one that most people contradict."""
    for noun in nouns(candidate):
        word = candidate.words[noun]
        mine = colours(candidate, noun, lexicon)
        if not mine or len(_named(candidate, word)) > 1:
            continue  # of two dogs each has its colour
        votes = Counter(
            bool(theirs & mine)
            for human in humans
            for index in nouns(human)
            if human.words[index].lemma == word.lemma
            for theirs in [colours(human, index, lexicon)]
            if theirs and len(_named(human, word)) == 1
        )
        if votes[False] > votes[True]:
            return f"most people give the {word.text} another colour than {' and '.join(sorted(mine))}"
    subject = find_subject(candidate, lexicon)
    if subject is not None:
        mine_count = _number(candidate, subject.thing, lexicon)
        word = candidate.words[subject.thing]
        counts = [
            min(lexicon.count(human, noun), MANY)
            for human in humans
            for noun in nouns(human)
            if _named(human, word) == [noun] and _number(human, noun, lexicon) is not None
        ]
        usual = majority(counts)
        alone = len(_named(candidate, word)) == 1
        if alone and mine_count is not None and usual is not None and usual != mine_count:
            return f"most people count {usual} {word.text}, not {mine_count}"
    return ""
