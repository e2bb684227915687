"""Captions as people hand them in: cleaned of what no reader sees, and the unusable ones named.

What is refused here never reaches a generator nor supports a word of one: text in another language, text that
gives orders to a model ("ignore the above"), text with hardly any letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

from tellapart_training.metrics.hallucination import ObjectList

_SPACE_BEFORE = re.compile(r"\s+([.,;:!?)]|'(?:s|t|re|ve|ll|d|m)\b|n't\b)")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "`": "'"})
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "ro", "fi", "id")
_MIN_LETTERS = 3

# Orders to a reader that is a machine, and talk about being one. Captions describe; they do not command.
_ORDERS = re.compile(
    r"""<\|?/?\s*(?:system|im_start|im_end|inst) | \b(?:
      (?:ignore|disregard|forget|override|bypass)\b.{0,40}\b
        (?:above|previous|prior|earlier|instructions?|prompts?|rules?|everything|system)
    | (?:system|developer|assistant|user)\s*(?:prompt|message)?\s*:
    | you\s+are\s+(?:now\s+)?(?:an?\s+)?(?:ai|assistant|chatbot|language\s+model|chatgpt|gpt|llm)\b
    | as\s+an\s+ai\b | (?:respond|reply|answer)\s+(?:only\s+)?(?:with|in|as)\b
    | (?:print|reveal|repeat|output)\s+(?:the|your|all)\b.{0,30}\b(?:prompt|instructions?|above|secrets?|key)
    | do\s+not\s+(?:describe|follow|caption) | (?:write|say|output)\s+(?:only|exactly|nothing|the\s+words?)\b
    | jailbreak | new\s+instructions? | prompt\s+injection
    )""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class CleanCaptions:
    """The captions of an image that can be used.

    Attributes:
        texts: cleaned, in order, equal ones once.
        refused: why each other one was left out: "empty", "language", "instruction"; a repeat is no refusal.
    """

    texts: tuple[str, ...]
    refused: tuple[str, ...] = field(default=())


def clean_captions(captions: Sequence[str]) -> CleanCaptions:
    """Clean an image's captions and leave out what is none.

    Args:
        captions: as written.
    """
    kept: dict[str, str] = {}
    refused = []
    for caption in captions:
        text = clean_text(caption)
        reason = refusal(text)
        if reason:
            refused.append(reason)
        else:
            kept.setdefault(text.lower().rstrip(" ."), text)
    return CleanCaptions(tuple(kept.values()), tuple(refused))


def clean_text(text: str) -> str:
    """A caption without control characters, stray quotes and the blanks that tokenisers leave.

    "A dog 's  toy , red ." becomes "A dog's toy, red."; a caption without a final stop stays without.
    """
    text = unicodedata.normalize("NFC", text).translate(_QUOTES).replace('"', "").replace("''", "")
    # Categories C*: control, format (zero-width, direction marks), surrogates, private use, unassigned.
    text = "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in text)
    return _SPACE_BEFORE.sub(r"\1", re.sub(r"\s+", " ", text)).strip()


def refusal(text: str) -> str:
    """Why a cleaned text is no caption to work with; "" where it is one."""
    if sum(map(str.isalpha, text)) < _MIN_LETTERS:
        return "empty"
    if _ORDERS.search(text):
        return "instruction"
    return "" if is_english(text) else "language"


def is_english(text: str) -> bool:
    """Whether a text reads as English, by its small words.

    Counts the function words of English and of twelve other languages, in spaCy's lists. Names and short
    captions have none of any; what has none and is written in Latin letters is let through.
    """
    letters = [sign for sign in text if sign.isalpha()]
    latin = sum(sign.isascii() or "LATIN" in unicodedata.name(sign, "") for sign in letters)
    if latin < 0.7 * len(letters):
        return False
    words = [word.lower() for word in _WORD.findall(text)]
    english = _function_words("en")
    own = sum(word in english for word in words)
    foreign = [word for word in words if word not in english and word not in _nouns()]
    others = max(sum(word in _function_words(code) for word in foreign) for code in _LANGUAGES)
    return others <= own or (own > 0 and others < 2)


@cache
def _nouns() -> frozenset[str]:
    # German has "man" and "bald" among its small words, which are no sign of German in a caption.
    return frozenset(word for phrase in ObjectList.load().concept_of for word in phrase) | {"bald"}


@cache
def _function_words(code: str) -> frozenset[str]:
    return frozenset(import_module(f"spacy.lang.{code}.stop_words").STOP_WORDS)
