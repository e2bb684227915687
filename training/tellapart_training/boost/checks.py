"""Anchoring checks: whether a caption says only what people said, in one sound sentence.

Every rule is a function that returns why a caption fails, "" where it does not; rules are counted and
switched off by name. A reason is written for the generator, which gets it with the next try. Facts come from
the human captions; where a vision expert's statements are given too, they may add and never contradict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tellapart_training.boost.anchors import (
    attributes_fail,
    conflict_fails,
    counts_fail,
    relations_fail,
    words_fail,
)
from tellapart_training.boost.lexicon import Lexicon
from tellapart_training.boost.parsing import Sentence
from tellapart_training.boost.texts import is_english
from tellapart_training.metrics.words import metric_words

CLIP_TOKENS = 77


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A caption under check, with all that it is checked against.

    Attributes:
        text: the caption.
        sentence: its parse.
        humans: parsed human captions of the image.
        vision: parsed statements of vision experts; empty for a blend of captions alone.
        prompt: instructions that the generator was given, to recognise an echo.
        exact: whether every single word must be a human's, or of `vision`, as the extractive blend promises.
        image: name of the image, for the rule that looks at it.
    """

    text: str
    sentence: Sentence
    humans: Sequence[Sentence]
    vision: Sequence[Sentence] = ()
    prompt: str = ""
    exact: bool = False
    image: str = ""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a caption may be.

    Attributes:
        words: most words.
        pieces: most pieces of our own vocabulary, with the marks of start and end; 0 is no limit.
        count_pieces: counts them.
        count_clip: counts CLIP's tokens with start and end; None estimates them from above.
    """

    words: int = 40
    pieces: int = 0
    count_pieces: Callable[[str], int] | None = None
    count_clip: Callable[[str], int] | None = None


Rule = Callable[[Candidate, Limits, Lexicon], str]

_META = re.compile(
    r"""(?ix)
    ^\W*(?:in\s+)?(?:this|the|an?)\s+(?:image|picture|photo(?:graph)?|scene|caption|description|shot)s?\b
      (?=.{0,12}\b(?:shows?|showing|depicts?|features?|captures?|displays?|of|is|we|there|,))
    | \bcaptions?\b | \bthe\s+(?:image|photo|picture)\s+(?:shows|depicts|is)\b | \bdescri(?:bed|ption)\b
    | \bas\s+an\s+ai\b | \blanguage\s+model\b | \bI(?:'m|\s+am)?\s+(?:sorry|cannot|can't|unable)\b
    | \bI\s+(?:can|could|cannot|apologi[sz]e|would)\b
    | ^\W*(?:sure|certainly|of\s+course|here(?:'s|\s+is|\s+are))\b
    | \b(?:combined|merged|blended)\s+(?:sentence|caption|text)\b | \bsorry\b | ^\s*\w+\s*:\s
    """
)
_INNER_END = re.compile(r"[.!?;\n\r:](?=\s*\S)")
_ECHO_WORDS = 6


def _empty(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    words = metric_words(candidate.text)
    return "it has fewer than three words" if len(words) < 3 else ""


def _meta(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    found = _META.search(candidate.text)
    if found and not any(found[0].lower() in human.text.lower() for human in candidate.humans):
        return f"it talks about the image or the task ({found[0].strip()!r}) instead of describing"
    return ""


def _echo(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    words = metric_words(candidate.text)
    said = " ".join(metric_words(candidate.prompt))
    for start in range(len(words) - _ECHO_WORDS + 1):
        part = " ".join(words[start : start + _ECHO_WORDS])
        if part in said and not any(part in " ".join(metric_words(one.text)) for one in candidate.humans):
            return f"it repeats the instructions ({part!r})"
    return ""


def _language(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    return "" if is_english(candidate.text) else "it is not English"


def _sentence(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    text = candidate.text.strip()
    if not text.endswith("."):
        return "it does not end with a full stop"
    inner = _INNER_END.search(text[:-1])
    return f"it is not one sentence ({inner[0]!r} inside)" if inner else ""


def _length(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    words = len(metric_words(candidate.text))
    if words > limits.words:
        return f"it has {words} words, at most {limits.words} are allowed"
    if limits.pieces and limits.count_pieces is not None:
        pieces = limits.count_pieces(candidate.text)
        if pieces > limits.pieces:
            return f"it has {pieces} vocabulary pieces, at most {limits.pieces} are allowed; shorten it"
    return ""


def _clip_length(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    tokens = (limits.count_clip or estimate_clip_tokens)(candidate.text)
    return f"it has {tokens} tokens, at most {CLIP_TOKENS} are allowed" if tokens > CLIP_TOKENS else ""


def estimate_clip_tokens(text: str) -> int:
    """CLIP's tokens of a text, estimated on the high side: one for four letters begun, and two marks."""
    return 2 + sum((len(word) + 3) // 4 for word in re.findall(r"\w+|[^\w\s]", text))


def _words(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    if candidate.exact:
        sources = [*candidate.humans, *candidate.vision]
        stated = {spelled for source in sources for spelled in exact_words(source.text)}
        new = [word for word in exact_words(candidate.text) if word not in stated]
        return f"nobody wrote {new[0]!r}" if new else ""
    return words_fail(candidate.sentence, [*candidate.humans, *candidate.vision], lexicon)


def exact_words(text: str) -> list[str]:
    """Words as the support of a blend is counted: "an" is "a", everything else stands for itself."""
    return ["a" if word == "an" else word for word in metric_words(text)]


def _attributes(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    return attributes_fail(candidate.sentence, [*candidate.humans, *candidate.vision], lexicon)


def _counts(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    return counts_fail(candidate.sentence, candidate.humans, candidate.vision, lexicon)


def _relations(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    return relations_fail(candidate.sentence, [*candidate.humans, *candidate.vision], lexicon)


def _conflict(candidate: Candidate, limits: Limits, lexicon: Lexicon) -> str:
    return conflict_fails(candidate.sentence, candidate.humans, lexicon)


RULES: Mapping[str, Rule] = {
    "empty": _empty,
    "meta": _meta,
    "echo": _echo,
    "language": _language,
    "sentence": _sentence,
    "length": _length,
    "clip_length": _clip_length,
    "words": _words,
    "attributes": _attributes,
    "counts": _counts,
    "relations": _relations,
    "conflict": _conflict,
}
"""Rules in the order in which they are tried; `similarity` needs images and stands in `similarity.py`."""


@dataclass(frozen=True)
class Checker:
    """The rules that are on.

    Attributes:
        lexicon: word classes.
        limits: lengths.
        off: names of rules that are switched off.
        look: the rule "similarity", given image, caption and human captions; None where there are no photos.
    """

    lexicon: Lexicon
    limits: Limits
    off: frozenset[str] = frozenset()
    look: Callable[[str, str, Sequence[Sentence]], str] | None = None

    def check(self, candidate: Candidate) -> tuple[str, str]:
        """The first rule that a caption breaks, and why; ("", "") where it breaks none."""
        for name, rule in RULES.items():
            if name not in self.off:
                reason = rule(candidate, self.limits, self.lexicon)
                if reason:
                    return name, reason
        if self.look is not None and "similarity" not in self.off:
            reason = self.look(candidate.image, candidate.text, candidate.humans)
            if reason:
                return "similarity", reason
        return "", ""
