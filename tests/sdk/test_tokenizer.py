"""WordPiece by hand: what each step does; equality with the original is proved in tests/training."""

from __future__ import annotations

import pytest

from tellapart.bundle import open_bundle
from tellapart.errors import UsageError, VocabularyError
from tellapart.manifest import Vocabulary
from tellapart.tokenizer import Tokenizer, basic_tokens, pad_ids, tidy_spaces

LINES = [
    *["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
    *["a", "dog", "##s", "##gy", "run", "##ning", "un", "##aff", "##able", "t", "shirt", "man", "s", "don"],
    *[".", ",", "'", "-", "(", ")", "!", "狗", "cafe", "##", "σοφος"],
]
ID = {piece: index for index, piece in enumerate(LINES)}


@pytest.fixture
def tokenizer():
    """Over the vocabulary above."""
    return Tokenizer.from_lines(LINES, Vocabulary())


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A dog", ["a", "dog"]),
        ("unaffable dogs running", ["un", "##aff", "##able", "dog", "##s", "run", "##ning"]),
        ("Doggy!!", ["dog", "##gy", "!", "!"]),
        ("t-shirt, (don't)", ["t", "-", "shirt", ",", "(", "don", "'", "t", ")"]),
        ("CAFÉ cafe\u0301 ca\u0300fé", ["cafe", "cafe", "cafe"]),  # accents go, composed or not
        ("dog狗dog", ["dog", "狗", "dog"]),  # ideographs stand alone
        ("d\0o\u200bg \ufffddog\x7f", ["dog", "dog"]),  # control, zero-width, replacement: out
        ("\ta\r\ndog\u00a0a\u2003dog\u2028a", ["a", "dog", "a", "dog", "a"]),  # every kind of space
        ("dog\u2014a\u00bfdog", ["dog", "[UNK]", "a", "[UNK]", "dog"]),  # dashes and signs beyond ASCII
        ("ΣΟΦΟΣ", ["[UNK]"]),  # lower case letter by letter ends in sigma, not in final sigma
        ("xyz dogx", ["[UNK]", "[UNK]"]),  # one unknown for a word, never part of it
        ("[SEP] [PAD]", ["[UNK]"] * 6),  # text stays text
        ("##s", ["[UNK]", "[UNK]", "s"]),
        ("\ud800dog", ["dog"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_pieces(text, pieces, tokenizer):
    assert tokenizer.pieces(text) == pieces
    assert tokenizer.encode(text) == [2, *[ID[piece] for piece in pieces], 3]


def test_a_word_of_100_letters_is_read_and_of_101_is_unknown():
    tokenizer = Tokenizer.from_lines([*LINES, "##a"], Vocabulary())
    assert len(tokenizer.pieces("a" * 100)) == 100
    assert tokenizer.pieces("a" * 101) == ["[UNK]"]


def test_upper_case_and_accents_stay_where_the_vocabulary_keeps_them():
    tokenizer = Tokenizer.from_lines([*LINES, "Dog", "Café"], Vocabulary(lowercase=False))
    assert tokenizer.pieces("Dog dog Cafe\u0301 DOG") == ["Dog", "dog", "Café", "[UNK]"]


def test_basic_tokens_is_the_first_step_alone():
    assert basic_tokens("Don't go: 3.5kg Ünder_score") == [
        *["don", "'", "t", "go", ":", "3", ".", "5kg", "under", "_", "score"]
    ]
    assert basic_tokens("Größe") == ["große"]
    assert basic_tokens("Dog", lowercase=False) == ["Dog"]


def test_the_end_is_cut_off_inside_the_marks(tokenizer):
    assert tokenizer.encode("a dog a dog", 4) == [2, ID["a"], ID["dog"], 3]
    assert tokenizer.encode("a dog a dog", 2) == [2, 3]
    assert tokenizer.encode("a", 40) == [2, ID["a"], 3]
    with pytest.raises(UsageError, match="max_tokens must be at least 2"):
        tokenizer.encode("a", 1)


@pytest.mark.parametrize("text", [None, b"a dog", 7, ["a"]])
def test_what_is_no_text(text, tokenizer):
    with pytest.raises(UsageError, match="a text must be a string, got"):
        tokenizer.encode(text)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["[CLS]", "a", "dog", "##s", "run", "##ning", ".", "[SEP]", "[PAD]"], "a dogs running."),
        (["a", "man", "'", "s", "t", "-", "shirt", ",", "a", "dog"], "a man's t-shirt, a dog"),
        (["don", "'", "t", "run", "!"], "don't run!"),
        (["dog", "##s", "'", "shirt"], "dogs' shirt"),
        (["(", "a", "dog", ")"], "(a dog)"),
        (["##gy", "dog"], "gy dog"),
        (["a", "[UNK]", "dog"], "a dog"),
        (["##"], "##"),
        ([], ""),
    ],
)
def test_decode(pieces, text, tokenizer):
    assert tokenizer.decode([ID[piece] for piece in pieces]) == text


def test_ordinary_sentences_come_back(tokenizer):
    for text in ("a dog", "dogs, running.", "a man's t-shirt", "don't run"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_spaces_are_left_where_words_are_apart():
    assert tidy_spaces("a sign - a red one") == "a sign-a red one"
    assert tidy_spaces("a ' b") == "a ' b"
    assert tidy_spaces("it ' s 5 o ' clock") == "it's 5 o ' clock"


@pytest.mark.parametrize("index", [-1, len(LINES), 10**9])
def test_an_id_outside_the_vocabulary(index, tokenizer):
    with pytest.raises(VocabularyError, match=f"no piece {index} in a vocabulary of {len(LINES)}"):
        tokenizer.decode([4, index])


def test_ids_and_size(tokenizer):
    assert (tokenizer.pad_id, tokenizer.unknown_id, tokenizer.start_id, tokenizer.end_id) == (0, 1, 2, 3)
    assert tokenizer.vocabulary_size == len(LINES)


def test_special_pieces_may_stand_elsewhere_under_other_names():
    page = Vocabulary(pad="<pad>", unknown="<unk>", start="<s>", end="</s>")
    tokenizer = Tokenizer.from_lines(["dog", "</s>", "<s>", "<unk>", "<pad>"], page)
    assert tokenizer.encode("dog cat") == [2, 0, 3, 1]
    assert tokenizer.decode([2, 0, 3, 1, 4]) == "dog"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (LINES[1:], "lacks '\\[PAD\\]', which the manifest names for 'pad'"),
        ([*LINES, "dog"], "has the piece 'dog' twice"),
        ([*LINES, "", "cat"], f"line {len(LINES) + 1} of the vocabulary is empty"),
        ([], "lacks"),
    ],
)
def test_vocabularies_that_cannot_be_used(lines, words):
    with pytest.raises(VocabularyError, match=words):
        Tokenizer.from_lines(lines, Vocabulary())


def test_line_ends_are_dropped_and_other_separators_kept():
    tokenizer = Tokenizer.from_lines([f"{line}\r\n" for line in LINES], Vocabulary())
    assert tokenizer.pieces("a dog") == ["a", "dog"]


def test_from_bundle(tiny_bundle):
    with open_bundle(tiny_bundle) as bundle:
        tokenizer = Tokenizer.from_bundle(bundle)
    assert tokenizer.vocabulary_size == len((tiny_bundle / "vocab.txt").read_text().splitlines())
    assert tokenizer.pieces("A red patchwork near the dog") == [
        "a",
        "red",
        "patch",
        "##work",
        "near",
        "the",
        "dog",
    ]
    assert tokenizer.decode(tokenizer.encode("a red patchwork")) == "a red patchwork"


def test_words_made_to_be_different_do_not_fill_the_memory(tokenizer, monkeypatch):
    monkeypatch.setattr("tellapart.tokenizer._CACHED_WORDS", 10)
    for number in range(100):
        tokenizer.encode(f"word{number}")
    assert tokenizer.pieces("a dog") == ["a", "dog"]
    assert len(tokenizer._cache) <= 10


def test_pad_ids():
    rows = [[2, 3], [2, 5, 3], [2]]
    assert pad_ids(rows, 0) == [[2, 3, 0], [2, 5, 3], [2, 0, 0]]
    assert rows[0] == [2, 3]
    assert pad_ids([], 0) == []
