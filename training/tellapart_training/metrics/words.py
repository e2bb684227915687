"""Words as the caption metrics count them: the Penn Treebank's, lower case, without punctuation.

Follows what pycocoevalcap does with Stanford's tokenizer (3.4.1, `-preserveLines -lowerCase`): English
clitics are split off ("dog's" -> "dog 's", "isn't" -> "is n't"), hyphenated words stay whole, and a fixed
list of punctuation is dropped. Brackets stay as "-lrb-" and "-rrb-", because pycocoevalcap looks for them in
upper case only.
"""

from __future__ import annotations

import re

_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_JOINED = {
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me",
    "lemme": "lem me", "d'ye": "d' ye", "whaddya": "wha dd ya", "'tis": "'t is", "'twas": "'t was",
}  # fmt: skip
_TOKEN = re.compile(
    r"""
    (?:[a-z]\.){2,}                           # u.s. and the like keep their stops
  | (?:mr|mrs|ms|dr|st|jr|sr|vs|prof|mt|co|inc|ltd|no)\.(?=\s+\S)  # abbreviations inside a line
  | \d+(?:[.,:/]\d+)*(?:-?[^\W\d_]+)*(?:-\w+)*   # numbers, 2nd, 10-year-old
  | n't(?!\w)
  | '(?:s|m|d|ll|re|ve)(?!\w)                 # clitics
  | 'n'(?!\w)                               # rock 'n' roll
  | [^\W_]+(?:[-_/.@][^\W_]+)*(?:'(?!(?:s|m|d|ll|re|ve|t)(?!\w))[^\W_]+)*
  | \.{2,} | -+ | ``|'' | [^\w\s]
    """,
    re.VERBOSE,
)
_NOT = re.compile(r"(?<=\w)n't(?!\w)")


def metric_words(text: str) -> list[str]:
    """Lower-cased Treebank words of a caption without punctuation.

    "The dog's owner isn't here, (yet)." gives: the dog 's owner is n't here -lrb- yet -rrb-
    """
    text = _NOT.sub(" n't", text.lower().replace("\u2019", "'"))
    words: list[str] = []
    for match in _TOKEN.finditer(text):
        word = _BRACKETS.get(match[0], match[0])
        if word not in _DROPPED and not set(word) <= {"-"} and not set(word) <= {"."}:
            words.extend(_JOINED.get(word, word).split())
    return words
