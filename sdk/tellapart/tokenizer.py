"""WordPiece in plain Python: text <-> ids of the bundle's vocabulary.

Gives the ids of BERT's original tokenizer, control characters, accents, Chinese signs and all, so that a
text tower trained with that one reads the same words here; the package of that tokenizer would bring
fourteen distributions along. One difference on purpose: "[SEP]" typed by a user is text here, never the
end mark.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tellapart.errors import UsageError, VocabularyError
from tellapart.manifest import Vocabulary

if TYPE_CHECKING:
    from tellapart.bundle import Bundle

MAX_WORD_LETTERS = 100
"""A longer word is unknown as a whole, as in BERT; also bounds the time that one word can take."""

_CACHED_WORDS = 50_000
"""Words are few and come again; texts made to be different must not fill the memory."""

# Runs of letters and digits, or one sign; what BERT does to any ASCII text once control characters are out.
_ASCII_TOKENS = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9\s]")
_ASCII_CONTROLS = {code: None for code in (*range(0x20), 0x7F) if chr(code) not in "\t\n\r"}

# Unified ideographs as BERT lists them: newer extensions and other scripts are written with spaces or not.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)

_NO_SPACE_BEFORE = re.compile(r" +([.,!?;:%)\]])")
_NO_SPACE_AFTER = re.compile(r"([(\[]) +")
_CONTRACTION = re.compile(r"(\w) ?' ?(s|t|d|m|re|ve|ll)\b")
_POSSESSIVE = re.compile(r"(\ws) '(?= |$)")
_HYPHEN = re.compile(r"(?<=\w) - (?=\w)")


def basic_tokens(text: str, *, lowercase: bool = True) -> list[str]:
    """Words and single signs, before they are cut into pieces.

    Args:
        text: any text, also with control characters and half surrogate pairs, which are left out.
        lowercase: also strips accents.
    """
    if text.isascii():
        text = text.translate(_ASCII_CONTROLS)
        return _ASCII_TOKENS.findall(text.lower() if lowercase else text)
    if lowercase:
        # Letter by letter: the lower case of a whole word knows a final sigma, BERT's does not.
        text = "".join(letter.lower() for letter in text)
    cleaned = "".join(_cleaned(letter) for letter in text)
    tokens: list[str] = []
    for word in unicodedata.normalize("NFC", cleaned).split():
        if lowercase:
            word = unicodedata.normalize("NFD", word.lower())
            word = "".join(letter for letter in word if unicodedata.category(letter) != "Mn")
        tokens += "".join(f" {letter} " if _is_punctuation(letter) else letter for letter in word).split()
    return tokens


def _cleaned(letter: str) -> str:
    """The letter, a space, a letter between spaces, or nothing."""
    if letter in "\t\n\r":
        return " "
    kind, code = unicodedata.category(letter), ord(letter)
    if kind[0] == "C" or code == 0xFFFD:
        return ""
    if kind == "Zs":
        return " "
    return f" {letter} " if any(low <= code <= high for low, high in _IDEOGRAPHS) else letter


def _is_punctuation(letter: str) -> bool:
    if letter.isascii():
        return not letter.isalnum() and "!" <= letter <= "~"
    return unicodedata.category(letter)[0] == "P"


class Tokenizer:
    """Text to ids and back; safe from many threads.

    Attributes:
        vocabulary: the manifest's page about it.
        pad_id: id that fills a batch.
        unknown_id: id of a word that the pieces cannot spell.
        start_id: id that begins every sequence.
        end_id: id that ends it.
    """

    def __init__(self, lines: Iterable[str], vocabulary: Vocabulary) -> None:
        """See `from_lines`."""
        self.vocabulary = vocabulary
        self._pieces = tuple(line.rstrip("\r\n") for line in lines)
        self._ids = {piece: index for index, piece in enumerate(self._pieces)}
        if len(self._ids) != len(self._pieces):
            twice = next(piece for index, piece in enumerate(self._pieces) if self._ids[piece] != index)
            raise VocabularyError(
                f"the vocabulary has the piece {twice!r} twice; each line must be different"
            )
        if "" in self._ids:
            raise VocabularyError(
                f"line {self._ids[''] + 1} of the vocabulary is empty; every line is one piece"
            )
        special = {}
        for name in ("pad", "unknown", "start", "end"):
            piece = getattr(vocabulary, name)
            if piece not in self._ids:
                raise VocabularyError(
                    f"the vocabulary lacks {piece!r}, which the manifest names for {name!r}"
                )
            special[name] = self._ids[piece]
        self.pad_id, self.unknown_id = special["pad"], special["unknown"]
        self.start_id, self.end_id = special["start"], special["end"]
        self._special = frozenset(special.values())
        self._longest = max(len(piece) for piece in self._pieces)
        self._cache: dict[str, tuple[int, ...]] = {}

    @classmethod
    def from_lines(cls, lines: Iterable[str], vocabulary: Vocabulary) -> Tokenizer:
        """A tokenizer from pieces in the order of their ids; line ends are dropped.

        Raises:
            VocabularyError: a piece twice, an empty line, or a special piece that is missing.
        """
        return cls(lines, vocabulary)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Tokenizer:
        """The tokenizer of an opened bundle: this one, or that of `tellapart.byte_pairs` or `.unigrams`.

        Raises:
            VocabularyError: the file is not UTF-8 text, or as for `from_lines`.
        """
        vocabulary = bundle.manifest.vocabulary
        pieces = _read_text(bundle, vocabulary.file)
        if vocabulary.kind == "unigram":
            from tellapart.unigrams import UnigramTokenizer  # it builds on this module

            return UnigramTokenizer.from_files(vocabulary, pieces, _read_text(bundle, vocabulary.scores))
        if vocabulary.kind != "wordpiece":
            from tellapart.byte_pairs import BytePairTokenizer  # it builds on this module

            return BytePairTokenizer.from_files(vocabulary, pieces, _read_text(bundle, vocabulary.merges))
        # Not splitlines: a piece may hold a sign that it takes for a line's end, such as U+2028.
        lines = pieces.split("\n")
        return cls(lines[:-1] if lines[-1] == "" else lines, vocabulary)

    @property
    def vocabulary_size(self) -> int:
        """Number of pieces, special ones counted."""
        return len(self._pieces)

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, without start and end marks."""
        return [self._pieces[index] for index in self._text_ids(text)]

    def joins(self, text: str) -> list[bool]:
        """For each piece of a text whether it continues the word of the piece before."""
        return [piece.startswith("##") for piece in self.pieces(text)]

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Ids of a text between start and end mark.

        Args:
            text: any text; "" gives the two marks.
            max_tokens: longest result, marks counted; the text's end is cut off. None keeps all of it.

        Raises:
            UsageError: no text, or fewer than two tokens allowed.
        """
        ids = self._text_ids(text)
        if max_tokens is not None:
            if max_tokens < 2:
                raise UsageError(
                    f"max_tokens must be at least 2, as start and end mark count, got {max_tokens}"
                )
            ids = ids[: max_tokens - 2]
        return [self.start_id, *ids, self.end_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids: special ones dropped, pieces joined, no space before signs or inside "don't".

        Raises:
            VocabularyError: an id that is not in the vocabulary.
        """
        words: list[str] = []
        for index in ids:
            if not 0 <= index < len(self._pieces):
                raise VocabularyError(f"there is no piece {index} in a vocabulary of {len(self._pieces)}")
            if index in self._special:
                continue
            piece = self._pieces[index]
            if piece.startswith("##") and len(piece) > 2:
                words[-1:] = [words[-1] + piece[2:]] if words else [piece[2:]]
            else:
                words.append(piece)
        return tidy_spaces(" ".join(words))

    def _text_ids(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise UsageError(f"a text must be a string, got {type(text).__name__}")
        cache = self._cache
        ids: list[int] = []
        for word in self._words(text):
            known = cache.get(word)
            if known is None:
                known = self._word_ids(word)
                if len(cache) >= _CACHED_WORDS:
                    cache = self._cache = {}
                cache[word] = known
            ids += known
        return ids

    def _words(self, text: str) -> Iterable[str]:
        return basic_tokens(text, lowercase=self.vocabulary.lowercase)

    def _word_ids(self, word: str) -> tuple[int, ...]:
        """Longest piece first, from the left; one unknown for the word if any part has no piece."""
        if len(word) > MAX_WORD_LETTERS:
            return (self.unknown_id,)
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                found = self._ids.get(prefix + word[start:end])
                if found is not None:
                    ids.append(found)
                    start = end
                    break
            else:
                return (self.unknown_id,)
        return tuple(ids)


def _read_text(bundle: Bundle, file: str) -> str:
    try:
        return bundle.read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{bundle.name}: {file} is not UTF-8 text: {error}") from error


def tidy_spaces(text: str) -> str:
    """Written as people write: "a man ' s t - shirt , red" -> "a man's t-shirt, red"."""
    text = _NO_SPACE_AFTER.sub(r"\1", _NO_SPACE_BEFORE.sub(r"\1", text))
    text = _POSSESSIVE.sub(r"\1'", _CONTRACTION.sub(r"\1'\2", text))
    return _HYPHEN.sub("-", text)


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int) -> list[list[int]]:
    """Rows of one length, the shorter ones filled at the end."""
    longest = max(map(len, rows), default=0)
    return [[*row, *[pad_id] * (longest - len(row))] for row in rows]
