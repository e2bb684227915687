"""The training vocabulary -> the bundle's `vocab.txt`, read back by the device's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from tellapart.errors import CheckpointError
from tellapart.manifest import Vocabulary
from tellapart.tokenizer import Tokenizer
from tellapart_model.config import END_ID, PAD_ID, SPECIAL_PIECES, START_ID, UNKNOWN_ID

_SENTENCES = (
    "a dog runs through the grass",
    "Two girls' red-and-white kites, at the beach; it's windy!",
    "Ein Café in Zürich 漢字 naïve 100%",
    "",
)


def write_vocabulary(pieces: Sequence[str], *, max_text_tokens: int) -> tuple[bytes, Vocabulary]:
    """The file and its page in the manifest.

    Args:
        pieces: the vocabulary in the order of its ids.
        max_text_tokens: longest sequence that the text graph reads.

    Raises:
        CheckpointError: the special pieces are not where the networks expect them, or a text does not come
            back as the pieces it was cut into.
        VocabularyError: a piece twice, an empty one.
    """
    vocabulary = Vocabulary(max_text_tokens=max_text_tokens)
    content = "".join(f"{piece}\n" for piece in pieces).encode("utf-8")
    tokenizer = Tokenizer.from_lines(content.decode("utf-8").rstrip("\n").split("\n"), vocabulary)
    ids = (tokenizer.pad_id, tokenizer.unknown_id, tokenizer.start_id, tokenizer.end_id)
    if ids != (PAD_ID, UNKNOWN_ID, START_ID, END_ID) or tokenizer.vocabulary_size != len(pieces):
        raise CheckpointError(f"vocabulary: expected {', '.join(SPECIAL_PIECES)} first, found them at {ids}")
    for text in _SENTENCES:
        cut = tokenizer.encode(text, max_tokens=max_text_tokens)
        spelt = [pieces[index] for index in cut[1:-1]]
        if spelt != tokenizer.pieces(text)[: len(spelt)] or (cut[0], cut[-1]) != (START_ID, END_ID):
            raise CheckpointError(f"vocabulary: {text!r} does not come back as its own pieces")
    return content, vocabulary
