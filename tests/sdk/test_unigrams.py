"""Unigrams on words cut by hand; `tests/export/test_words.py` compares them with another library."""

from __future__ import annotations

import pytest

from tellapart.errors import VocabularyError
from tellapart.manifest import Vocabulary
from tellapart.unigrams import SPACE, UnigramTokenizer

PIECES = {
    "</s>": 0.0,
    "<unk>": 0.0,
    SPACE: -3.0,
    f"{SPACE}a": -2.0,
    "a": -4.0,
    "d": -5.0,
    "o": -5.0,
    "g": -5.0,
}
PIECES |= {f"{SPACE}do": -4.0, "og": -4.5, f"{SPACE}dog": -12.9}


def tokenizer(scores: str | None = None) -> UnigramTokenizer:
    page = Vocabulary(
        kind="unigram", scores="scores.txt", pad="</s>", unknown="<unk>", start="</s>", end="</s>"
    )
    lines = "\n".join(map(str, PIECES.values())) if scores is None else scores
    return UnigramTokenizer.from_files(page, "\n".join(PIECES) + "\n", lines)


def test_the_largest_sum_wins_not_the_longest_piece() -> None:
    words = tokenizer()
    # -4 - 5 against -3 - 5 - 4.5 and -12.9: a tokenizer that takes the longest piece would take the last.
    assert words.pieces("dog") == [f"{SPACE}do", "g"]
    assert words.pieces("A  dog!") == [f"{SPACE}a", f"{SPACE}do", "g"]
    assert words.joins("a dog") == [False, False, True]
    assert words.pieces("") == words.pieces(" .\n") == []
    assert words.decode(words.encode("A dog, a dog.")) == "a dog a dog"


def test_an_unknown_sign_costs_more_than_the_worst_piece() -> None:
    pieces = {"</s>": 0.0, "<unk>": 0.0, SPACE: -1.0, "xe": -9.0, "b": -9.0, "e": -1.0, "eb": -1.0}
    page = Vocabulary(
        kind="unigram", scores="scores.txt", pad="</s>", unknown="<unk>", start="</s>", end="</s>"
    )
    lines = "\n".join(map(str, pieces.values()))
    words = UnigramTokenizer.from_files(page, "\n".join(pieces), lines)
    # -9 - 9 against -(9 + 10) - 1: the sign "x", of which there is no piece, is not worth its price.
    assert words.pieces("xeb") == [SPACE, "xe", "b"]


def test_unknown_signs_in_a_row_are_one() -> None:
    words = tokenizer()
    assert words.pieces("xyz a") == [SPACE, "<unk>", f"{SPACE}a"]
    # A wide letter, a bell, a space of no width.
    assert words.pieces("\uff41 \x07a\u200bd") == [
        f"{SPACE}a",
        f"{SPACE}a",
        SPACE,
        "d",
    ]
    assert words.encode("\ud800dog")[1:-1] == words.encode("dog")[1:-1]


@pytest.mark.parametrize("scores", ["1\n2", "\n".join(["x"] * len(PIECES)), "\n".join(["nan"] * len(PIECES))])
def test_scores_that_are_none(scores: str) -> None:
    with pytest.raises(VocabularyError, match="scores"):
        tokenizer(scores)
    with pytest.raises(VocabularyError, match="no piece 99"):
        tokenizer().decode([99])
