"""What a parsed caption says: who it is about, what they do, and which adjectives stand at which noun."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tellapart_training.boost.lexicon import MANY, Lexicon
from tellapart_training.boost.parsing import Sentence

MODIFIERS = ("amod", "compound", "nmod")
_CONTENT_TAGS = ("NN", "JJ", "VB", "RB", "CD")
_EMPTY = frozenset(["very", "not", "n't", "so", "as", "just", "also", "there", "then"])


@dataclass(frozen=True)
class Subject:
    """Who a caption is about.

    Attributes:
        noun: index of the noun that carries the phrase ("group" of "a group of people").
        thing: index of the noun that says who ("people").
        verb: index of what they do, None where the caption only names them.
        finite: whether the verb makes a sentence ("runs", "is running"), not only a phrase ("running").
    """

    noun: int
    thing: int
    verb: int | None
    finite: bool


def find_subject(sentence: Sentence, lexicon: Lexicon) -> Subject | None:
    """Who a caption is about; None where its grammar is not understood or it is several sentences."""
    if len(sentence.roots) != 1:
        return None
    root = sentence.roots[0]
    word = sentence.words[root]
    if word.is_noun:
        actions = [child for child in sentence.children(root, "acl") if sentence.words[child].tag == "VBG"]
        verb = actions[0] if actions else None
        return Subject(root, lexicon.thing(sentence, root), verb, False)
    if not word.tag.startswith("VB"):
        return None
    nouns = [
        child for child in sentence.children(root, "nsubj", "nsubjpass") if sentence.words[child].is_noun
    ]
    if len(nouns) != 1 or nouns[0] > root:
        return None
    finite = word.tag in ("VBZ", "VBP", "VBD") or bool(sentence.children(root, "aux", "auxpass"))
    return Subject(nouns[0], lexicon.thing(sentence, nouns[0]), root, finite)


def nouns(sentence: Sentence) -> list[int]:
    """Every noun that heads a phrase, in order; the first parts of compounds are none."""
    return [index for index, word in enumerate(sentence.words) if word.is_noun and word.dep not in MODIFIERS]


def modifiers(sentence: Sentence, noun: int) -> list[int]:
    """Adjectives and first parts of compounds before a noun, those joined by "and" too, in order."""
    found = []
    for child in sentence.children(noun, *MODIFIERS):
        if child < noun:
            found.append(child)
            waiting = [child]
            while waiting:
                joined = sentence.children(waiting.pop(), "conj")
                found.extend(index for index in joined if index < noun)
                waiting.extend(joined)
    return sorted(found)


def owner(sentence: Sentence, noun: int) -> int | None:
    """The noun above a noun: who wears the shirt, whose hand it is; None at the top."""
    for above in sentence.ancestors(noun):
        word = sentence.words[above]
        if word.is_noun:
            return above
        if word.tag.startswith("VB"):
            subjects = sentence.children(above, "nsubj", "nsubjpass")
            if subjects and subjects[0] != noun and sentence.words[subjects[0]].is_noun:
                return subjects[0]
    return None


def content_words(sentence: Sentence) -> list[str]:
    """Nouns, adjectives, numbers, adverbs and full verbs, in lower case.

    Auxiliaries and the verb "be" carry no content.
    """
    return [
        word.lower
        for word in sentence.words
        if word.tag[:2] in _CONTENT_TAGS
        and word.dep not in ("aux", "auxpass")
        and word.lemma != "be"
        and word.lower not in _EMPTY
        and word.is_word
    ]


def content_lemmas(sentence: Sentence) -> set[str]:
    """Lemmas of the content words."""
    kept = set(content_words(sentence))
    return {word.lemma for word in sentence.words if word.lower in kept}


def colours(sentence: Sentence, noun: int, lexicon: Lexicon) -> frozenset[str]:
    """Colours that stand at a noun."""
    return frozenset(
        sentence.words[index].lower
        for index in modifiers(sentence, noun)
        if lexicon.has("colour", sentence.words[index])
    )


def persons_named(sentence: Sentence, lexicon: Lexicon) -> int:
    """How many people a caption speaks of; `MANY` as soon as one plural has no number."""
    total = 0
    for noun in nouns(sentence):
        word = sentence.words[noun]
        if lexicon.is_person(word) and not lexicon.has("quantity", word) and word.dep != "appos":
            total += lexicon.count(sentence, noun)
    return min(total, MANY)


def majority(values: Iterator[int] | Sequence[int]) -> int | None:
    """What most say, None without a majority of one over any other."""
    common = Counter(values).most_common(2)
    if not common or (len(common) > 1 and common[0][1] == common[1][1]):
        return None
    return common[0][0]
