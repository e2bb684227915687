"""Byte-pair encoding in plain Python: text <-> ids in the manner of GPT-2 and of CLIP.

Both spell a text in bytes, each byte written as one printable sign, and join neighbours in the order of a
list of merges. They differ in how a text is first cut into words: GPT-2 keeps spaces as the first sign of a
word, so any text comes back as it was (in SmolLM2's variant each digit is a word of its own); CLIP folds case
and spaces and marks the end of a word with "</w>".

As in the WordPiece of `tellapart.tokenizer`, a mark such as "<|endoftext|>" typed by a user is text here.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections.abc import Iterable, Iterator

from tellapart.errors import VocabularyError
from tellapart.manifest import Vocabulary
from tellapart.tokenizer import Tokenizer

WORD_END = "</w>"
"""Closes the last piece of a word in CLIP's vocabulary."""

# The words of both tokenizers' patterns, over a string of classes: L letter, N number, O other sign, " "
# the plain space, s any other space. Python's `re` knows no \p{L}, and its \d and \w are other sets.
_GPT2_WORDS = re.compile(r" ?L+| ?N+| ?O+|[ s]+(?![LNO])|[ s]+")
_DIGIT_WORDS = re.compile(r" ?L+|N| ?O+|[ s]+(?![LO])|[ s]+")
_CLIP_WORDS = re.compile(r"L+|N|O+")
_CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)")
_NOT_SPACE = frozenset("\x1c\x1d\x1e\x1f")  # `str.isspace` counts them, Unicode's White_Space does not
_SPACES = re.compile(r"[^\S\x1c-\x1f]+")


def byte_signs() -> list[str]:
    """The sign of each of the 256 bytes: itself where it is printable Latin-1, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


class BytePairTokenizer(Tokenizer):
    """Text to ids and back; safe from many threads. Attributes as in `Tokenizer`."""

    def __init__(self, lines: Iterable[str], vocabulary: Vocabulary, merges: Iterable[str]) -> None:
        """See `from_files`."""
        super().__init__(lines, vocabulary)
        self._signs = byte_signs()
        self._bytes = {sign: byte for byte, sign in enumerate(self._signs)}
        self._is_clip = vocabulary.kind == "clip_bpe"
        self._pattern = {"clip_bpe": _CLIP_WORDS, "digit_bpe": _DIGIT_WORDS}.get(vocabulary.kind, _GPT2_WORDS)
        self._ranks: dict[tuple[str, str], int] = {}
        for number, line in enumerate(merges, start=1):
            if line.startswith("#version") or not line:
                continue
            pair = line.split(" ")
            if len(pair) != 2 or not all(pair):
                raise VocabularyError(
                    f"line {number} of the merges must be two pieces and a space between, got {line[:60]!r}"
                )
            self._ranks.setdefault((pair[0], pair[1]), len(self._ranks))

    @classmethod
    def from_files(cls, vocabulary: Vocabulary, pieces: str, merges: str) -> BytePairTokenizer:
        """A tokenizer from the text of its two files.

        Args:
            vocabulary: the manifest's page; its kind is "byte_bpe" (GPT-2), "digit_bpe" or "clip_bpe".
            pieces: one piece a line, in the order of ids.
            merges: two pieces a line, those that are joined first at the top.

        Raises:
            VocabularyError: a piece twice, an empty line, a special piece that is missing, or a merge that is
                not two pieces.
        """
        return cls(_lines(pieces), vocabulary, _lines(merges))

    def joins(self, text: str) -> list[bool]:
        """For each piece of a text whether it continues the word of the piece before."""
        pieces = self.pieces(text)
        if self._is_clip:
            return [place > 0 and not pieces[place - 1].endswith(WORD_END) for place in range(len(pieces))]
        space = self._signs[0x20]
        return [place > 0 and not piece.startswith(space) for place, piece in enumerate(pieces)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: special ones dropped, no space at the ends; bytes that are no UTF-8 become U+FFFD.

        Raises:
            VocabularyError: an id that is not in the vocabulary.
        """
        spelt = bytearray()
        for index in ids:
            if not 0 <= index < len(self._pieces):
                raise VocabularyError(f"there is no piece {index} in a vocabulary of {len(self._pieces)}")
            if index in self._special:
                continue
            piece = self._pieces[index]
            ends = self._is_clip and piece.endswith(WORD_END)
            for sign in piece[: -len(WORD_END)] if ends else piece:
                byte = self._bytes.get(sign)
                # A piece that was added beside the bytes is text as it stands.
                spelt += sign.encode("utf-8") if byte is None else bytes((byte,))
            if ends:
                spelt += b" "
        return spelt.decode("utf-8", errors="replace").strip()

    def _words(self, text: str) -> Iterator[str]:
        if self._is_clip:
            text = _SPACES.sub(" ", unicodedata.normalize("NFC", text))
            # Letter by letter: the lower case of a whole word knows a final sigma, CLIP's does not.
            text = "".join(letter.lower() for letter in text)
        classes = "".join(map(_class_of, text))
        place = 0
        while place < len(text):
            found = _CONTRACTION.match(text, place) or self._pattern.match(classes, place)
            if found is None:  # a space, which CLIP drops
                place += 1
                continue
            yield text[place : found.end()]
            place = found.end()

    def _word_ids(self, word: str) -> tuple[int, ...]:
        # Half surrogate pairs are no text; what cannot be written in UTF-8 is left out.
        spelt = [self._signs[byte] for byte in word.encode("utf-8", errors="ignore")]
        if self._is_clip and spelt:
            spelt[-1] += WORD_END
        return tuple(self._ids.get(piece, self.unknown_id) for piece in merge_pairs(spelt, self._ranks))


def merge_pairs(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Join neighbours until no pair is in the list: the best rank first, the leftmost among equals.

    A heap of pairs and links between the pieces, so that a word of n pieces takes n log n steps.

    Args:
        pieces: of one word; not changed.
        ranks: pair -> its place in the list of merges.
    """
    parts: list[str | None] = list(pieces)
    after = [*range(1, len(parts)), -1]
    before = list(range(-1, len(parts) - 1))
    heap: list[tuple[int, int, str, str]] = []

    def offer(left: int) -> None:
        if left >= 0 and after[left] >= 0:
            one, two = parts[left], parts[after[left]]
            if one is not None and two is not None and (one, two) in ranks:
                heapq.heappush(heap, (ranks[one, two], left, one, two))

    for left in range(len(parts) - 1):
        offer(left)
    while heap:
        _, left, one, two = heapq.heappop(heap)
        right = after[left]
        # An entry whose pieces have been joined with others since is stale.
        if parts[left] != one or right < 0 or parts[right] != two:
            continue
        parts[left], parts[right] = one + two, None
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        offer(before[left])
        offer(left)
    return [part for part in parts if part is not None]


def _class_of(letter: str) -> str:
    if letter == " ":
        return " "
    kind = unicodedata.category(letter)[0]
    if kind in "LN":
        return kind
    return "s" if letter.isspace() and letter not in _NOT_SPACE else "O"


def _lines(text: str) -> list[str]:
    # Not splitlines: a piece may hold a sign that it takes for a line's end.
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines
