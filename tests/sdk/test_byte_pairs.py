"""Byte pairs on words cut by hand; `tests/export/test_words.py` compares them with another library."""

from __future__ import annotations

import pytest

from tellapart.byte_pairs import BytePairTokenizer, byte_signs, merge_pairs
from tellapart.errors import UsageError, VocabularyError
from tellapart.manifest import Vocabulary

END = "<|endoftext|>"
START = "<|startoftext|>"
GPT2_MERGES = ["Ġ d", "o g", "Ġd og", "' s"]
CLIP_MERGES = ["d o", "do g</w>", "' s</w>"]
ONE_MARK = {"pad": END, "unknown": END, "start": END, "end": END}


def gpt2() -> BytePairTokenizer:
    pieces = [*byte_signs(), *(pair.replace(" ", "") for pair in GPT2_MERGES), END]
    page = Vocabulary(kind="byte_bpe", merges="merges.txt", lowercase=False, **ONE_MARK)
    return BytePairTokenizer.from_files(
        page, "\n".join(pieces) + "\n", "\n".join(["#version: 0.2", *GPT2_MERGES])
    )


def clip() -> BytePairTokenizer:
    signs = byte_signs()
    pieces = [*signs, *(f"{sign}</w>" for sign in signs), *(pair.replace(" ", "") for pair in CLIP_MERGES)]
    page = Vocabulary(kind="clip_bpe", merges="merges.txt", **{**ONE_MARK, "start": START})
    return BytePairTokenizer.from_files(page, "\n".join([*pieces, START, END]), "\n".join(CLIP_MERGES))


def test_every_byte_has_a_sign_of_its_own() -> None:
    signs = byte_signs()
    assert len(set(signs)) == 256
    # From GPT-2's published vocabulary: "!" is 33, a space is "Ġ", a line's end "Ċ", and U+00AD is not
    # printable.
    assert (signs[33], signs[32], signs[10], signs[0xAD], signs[0xE9]) == ("!", "Ġ", "Ċ", "Ń", "é")


def test_words_of_gpt2() -> None:
    tokenizer = gpt2()
    assert tokenizer.pieces("dog's dog") == ["d", "og", "'s", "Ġdog"]
    assert tokenizer.pieces("a  12b") == ["a", "Ġ", "Ġ", "1", "2", "b"]
    assert tokenizer.joins("dog's dog") == [False, True, True, False]
    assert tokenizer.encode("dog")[0] == tokenizer.start_id == tokenizer.end_id == tokenizer.encode("dog")[-1]


def test_digits_are_words_of_their_own() -> None:
    pieces = [*byte_signs(), *(pair.replace(" ", "") for pair in [*GPT2_MERGES, "1 2", "Ġ 1"]), END]
    page = Vocabulary(kind="digit_bpe", merges="merges.txt", lowercase=False, **ONE_MARK)
    merges = "\n".join([*GPT2_MERGES, "1 2", "Ġ 1", "Ġ Ġ"])
    tokenizer = BytePairTokenizer.from_files(page, "\n".join([*pieces, "ĠĠ"]), merges)
    assert tokenizer.pieces("a  12 dog's") == ["a", "ĠĠ", "1", "2", "Ġdog", "'s"]
    assert tokenizer.decode(tokenizer.encode("at 3:30, 12 dogs")) == "at 3:30, 12 dogs"


def test_words_of_clip() -> None:
    tokenizer = clip()
    assert tokenizer.pieces("Dog's \n DOG 12") == ["dog</w>", "'s</w>", "dog</w>", "1</w>", "2</w>"]
    assert tokenizer.pieces("do") == ["d", "o</w>"]
    assert tokenizer.joins("do dog") == [False, True, False]
    assert tokenizer.decode(tokenizer.encode("A DOG  runs")) == "a dog runs"


@pytest.mark.parametrize(
    "text", ["", "a dog's dogs!", "Zürich 漢字\u2028½ 🐕", "a \t b\n\nc", "<|endoftext|>"]
)
def test_gpt2_gives_back_any_text_but_for_spaces_at_the_ends(text: str) -> None:
    tokenizer = gpt2()
    assert tokenizer.decode(tokenizer.encode(f" {text}\n")) == text


def test_bytes_that_break_off_become_the_replacement_sign() -> None:
    tokenizer = gpt2()
    assert tokenizer.decode(tokenizer.encode("é")[1:2]) == "\N{REPLACEMENT CHARACTER}"
    assert tokenizer.encode("\ud800") == tokenizer.encode("")
    with pytest.raises(VocabularyError, match="no piece 999"):
        tokenizer.decode([999])
    with pytest.raises(UsageError):
        tokenizer.encode(5)  # type: ignore[arg-type]


def test_pairs_are_joined_by_rank_and_from_the_left() -> None:
    assert merge_pairs(list("aaaaa"), {("a", "a"): 0}) == ["aa", "aa", "a"]
    assert merge_pairs(list("abc"), {("b", "c"): 0, ("a", "b"): 1}) == ["a", "bc"]
    assert merge_pairs(list("abc"), {("a", "b"): 0, ("ab", "c"): 1}) == ["abc"]
    assert merge_pairs([], {}) == []


def test_a_very_long_word_takes_no_time_to_speak_of() -> None:
    pieces = merge_pairs(["a"] * 200_000, {("a", "a"): 0, ("aa", "aa"): 1})
    assert len(pieces) == 50_000


def test_merges_that_are_none() -> None:
    page = Vocabulary(kind="byte_bpe", merges="merges.txt", **ONE_MARK)
    with pytest.raises(VocabularyError, match="line 2 of the merges"):
        BytePairTokenizer.from_files(page, END, "a b\nabc")
