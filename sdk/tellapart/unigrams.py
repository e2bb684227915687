"""Unigram pieces in plain Python: text <-> ids in the manner of SentencePiece, as SigLIP cuts its texts.

Every piece has a score, a log-probability; a text is cut where the sum of the scores is largest (Kudo 2018).
SigLIP first drops punctuation and folds case; SentencePiece then writes signs in their plain form (NFKC) and
a space as "▁" before the word that follows it.

As in the other tokenizers, a mark such as "</s>" typed by a user is text here.
"""

from __future__ import annotations

import math
import string
import unicodedata
from collections.abc import Iterable

from tellapart.errors import VocabularyError
from tellapart.manifest import Vocabulary
from tellapart.tokenizer import Tokenizer

SPACE = "\u2581"
"""Stands for a space in a piece."""

_UNKNOWN_COST = 10.0  # below the lowest score, as SentencePiece has it
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# What SentencePiece's "nmt_nfkc" does besides NFKC.
_CODES = (*range(1, 9), 11, *range(14, 32), 0x7F, 0x8F, 0x9F)
_BLANKS = "\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd"
_CLEAN = {**dict.fromkeys(_CODES, ""), **{ord(sign): " " for sign in _BLANKS}}
_KEPT = "\uff5e"  # the wide tilde stays wide


class UnigramTokenizer(Tokenizer):
    """Text to ids and back; safe from many threads. Attributes as in `Tokenizer`."""

    def __init__(self, lines: Iterable[str], vocabulary: Vocabulary, scores: Iterable[str]) -> None:
        """See `from_files`."""
        super().__init__(lines, vocabulary)
        try:
            found = [float(line) for line in scores]
        except ValueError as error:
            raise VocabularyError(f"the scores of the vocabulary must be numbers: {error}") from error
        if len(found) != len(self._pieces) or not all(map(math.isfinite, found)):
            raise VocabularyError(
                f"the vocabulary has {len(self._pieces)} pieces and {len(found)} scores; each piece needs "
                "one, a finite number"
            )
        self._scores = {
            piece: (score, index)
            for index, (piece, score) in enumerate(zip(self._pieces, found, strict=True))
            if index not in self._special
        }
        self._unknown_score = min((score for score, _ in self._scores.values()), default=0.0) - _UNKNOWN_COST

    @classmethod
    def from_files(cls, vocabulary: Vocabulary, pieces: str, scores: str) -> UnigramTokenizer:
        """A tokenizer from the text of its two files.

        Args:
            vocabulary: the manifest's page; its kind is "unigram".
            pieces: one piece a line, in the order of ids.
            scores: one number a line, in the same order; those of the special pieces are not looked at.

        Raises:
            VocabularyError: a piece twice, an empty line, a special piece that is missing, or a score that is
                missing or no finite number.
        """
        return cls(_lines(pieces), vocabulary, _lines(scores))

    def joins(self, text: str) -> list[bool]:
        """For each piece of a text whether it continues the word of the piece before."""
        return [place > 0 and not piece.startswith(SPACE) for place, piece in enumerate(self.pieces(text))]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: special ones dropped, no space at the ends.

        Raises:
            VocabularyError: an id that is not in the vocabulary.
        """
        spelt = []
        for index in ids:
            if not 0 <= index < len(self._pieces):
                raise VocabularyError(f"there is no piece {index} in a vocabulary of {len(self._pieces)}")
            if index not in self._special:
                spelt.append(self._pieces[index])
        return "".join(spelt).replace(SPACE, " ").strip()

    def _words(self, text: str) -> Iterable[str]:
        if self.vocabulary.lowercase:
            # Letter by letter: the lower case of a whole word knows a final sigma, SigLIP's does not.
            text = "".join(letter.lower() for letter in text)
        # Spaces first: Python counts some control characters as spaces, SentencePiece drops them.
        text = " ".join(text.translate(_NO_PUNCTUATION).split()).translate(_CLEAN)
        if _KEPT in text:
            text = _KEPT.join(unicodedata.normalize("NFKC", part) for part in text.split(_KEPT))
        else:
            text = unicodedata.normalize("NFKC", text)
        # Half surrogate pairs are no text.
        words = text.encode("utf-8", errors="ignore").decode("utf-8").split()
        # Whole: a piece may reach over the end of a word.
        return ["".join(SPACE + word for word in words)] if words else []

    def _word_ids(self, word: str) -> tuple[int, ...]:
        best = [0.0] + [-math.inf] * len(word)
        # Where the best piece that ends here begins, and its id.
        cuts = [(0, self.unknown_id)] * (len(word) + 1)
        for start in range(len(word)):
            single = False
            for end in range(start + 1, min(len(word), start + self._longest) + 1):
                found = self._scores.get(word[start:end])
                if found is None:
                    continue
                single = single or end == start + 1
                if best[start] + found[0] > best[end]:
                    best[end], cuts[end] = best[start] + found[0], (start, found[1])
            # A sign that is no piece is unknown.
            if not single and best[start] + self._unknown_score > best[start + 1]:
                best[start + 1], cuts[start + 1] = best[start] + self._unknown_score, (start, self.unknown_id)
        ids: list[int] = []
        end = len(word)
        while end:
            end, index = cuts[end]
            # Unknown signs in a row are one unknown.
            if not (ids and ids[-1] == index == self.unknown_id):
                ids.append(index)
        return tuple(reversed(ids))


def _lines(text: str) -> list[str]:
    # Not splitlines: a piece may hold a sign that it takes for a line's end.
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines
