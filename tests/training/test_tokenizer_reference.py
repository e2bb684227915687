"""The tokenizer equals BERT's own, as transformers has it, on any text."""

# ruff: noqa: RUF001 - odd letters are what this file is about

from __future__ import annotations

import unicodedata

import pytest

hypothesis = pytest.importorskip("hypothesis")
transformers = pytest.importorskip("transformers")

from hypothesis import strategies as st  # noqa: E402

from tellapart.manifest import Vocabulary  # noqa: E402
from tellapart.tokenizer import Tokenizer  # noqa: E402

pytestmark = pytest.mark.train

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789éßσςı狗"
LINES = [
    *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *(f"##{pair}" for pair in ("ing", "ed", "er", "es", "ll", "oo", "th")),
    *["the", "dog", "dogs", "red", "shirt", "large", "street", "people", "stand"],
    *"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    *["–", "…", "¿", "「", "ﬁ", "½", "i̇", "한", "ア"],
]

SENTENCES = [
    "A man in a red t-shirt stands on the street.",
    "Two dogs aren't running -- they're \"sleeping\" (again)!",
    "Ünïcödé àccénts, NAÏVE façades & Ångström; İstanbul, ΣΟΦΟΣ ΟΔΟΣ",
    "狗在街上 2 dogs… ½ price—50% off #sale @home",
    "tabs\tand\nlines\r\nand\x00nulls\x0bvertical\x1cseparators\x85next\u2028line\u2029para\u3000wide",
    "zero\u200bwidth soft\u00adhyphen \ufeffbom \ufffd replaced \ue000 private \U0001f415 emoji",
    "한국어 アイウ ｆｕｌｌｗｉｄｔｈ ﬁne Ⅻ \u0301lonely accent e\u0301 \u1e9b\u0323",
    "a" * 100 + " " + "a" * 101 + " " + "é" * 100,
    "[ SEP ] ##ing [unk] [mask] [",
    "\U00020000\U0002a6df\u4dbf\ufa10 \u3400x\u9fffy",
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The original; text that looks like a special piece is text to it too, as to ours."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return transformers.BertTokenizer(str(path), do_lower_case=True, split_special_tokens=True)


@pytest.fixture(scope="module")
def ours():
    """Ours, over the same pieces."""
    return Tokenizer.from_lines(LINES, Vocabulary())


def ids_of(reference, text):
    return [
        reference.cls_token_id,
        *reference.convert_tokens_to_ids(reference.tokenize(text)),
        reference.sep_token_id,
    ]


def shared(text, reference):
    """The letters that both know: the original of transformers 5 has tables older than Python's."""
    if not reference.is_fast:
        return text
    old = unicodedata.ucd_3_2_0
    return "".join(
        letter for letter in text if old.category(letter) == unicodedata.category(letter) not in ("Cn", "Cs")
    )


@pytest.mark.parametrize("text", SENTENCES, ids=range(len(SENTENCES)))
def test_varied_sentences(text, reference, ours):
    assert ours.encode(text) == ids_of(reference, text)


def no_special(text):
    """The original leaves a special piece in upper case, even as text; ours does not know special text."""
    return not any(piece in text for piece in LINES[:5])


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True)
@hypothesis.given(st.text(max_size=60).filter(no_special))
def test_any_text(reference, ours, text):
    text = shared(text, reference)
    assert ours.encode(text) == ids_of(reference, text)


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(
    st.text(alphabet=st.sampled_from([*LETTERS, *"ABCİΣ .,-'\t\u0301\u0345\u00a0ñÑ"]), max_size=60)
)
def test_any_text_of_letters_that_matter(reference, ours, text):
    assert ours.encode(text) == ids_of(reference, text)


def test_every_letter_of_unicode_alone_and_inside_a_word(reference, ours):
    """In long lines, as 1.1 million calls would take minutes; every letter has neighbours it could join."""
    for start in range(0, 0x110000, 0x1000):
        letters = shared([chr(code) for code in range(start, start + 0x1000)], reference)
        if start >= 0x30000 and not any(letter.isprintable() for letter in letters):
            letters = letters[:8]
        text = " ".join(f"{letter} d{letter}g" for letter in letters)
        assert ours.encode(text) == ids_of(reference, text), hex(start)
