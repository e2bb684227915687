"""The device's tokenizers against those of transformers, on texts that nobody chose."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from tellapart.errors import CheckpointError, ParityError
from tellapart_export.words import Words, check_words, device_tokenizer, read_words, reference_tokenizer
from toy_families import (
    write_bert_words,
    write_clip_words,
    write_gpt2_words,
    write_sentencepiece,
    write_smolvlm_words,
)

pytestmark = pytest.mark.train
WRITERS = {"byte_bpe": write_gpt2_words, "clip_bpe": write_clip_words, "wordpiece": write_bert_words}

# Both sides know Unicode by tables of their own age; signs that one of them may not know are left out, and
# so are the marks' own letters, which the reference takes for marks inside a text.
LETTERS = st.characters(max_codepoint=0x2FFFF, exclude_categories=("Cn", "Co", "Cs"), exclude_characters="<|")


def page(words: Words) -> tuple[Any, dict[str, bytes]]:
    last = len(words.pieces) - 1
    if words.kind == "unigram":
        return words.page(pad=1, unknown=2, start=1, end=1, max_text_tokens=20)
    if words.kind == "wordpiece":
        return words.page(pad=0, unknown=1, start=2, end=3, max_text_tokens=20)
    start = last - 1 if words.kind == "clip_bpe" else last
    return words.page(pad=last, unknown=last, start=start, end=last, max_text_tokens=20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("words")
    for kind, write in WRITERS.items():
        write(base / kind)
        # The same words once more, as newer libraries store them.
        reference_tokenizer(base / kind, kind).save_pretrained(base / f"{kind}-new")
        for old in ("vocab.json", "merges.txt", "vocab.txt"):
            (base / f"{kind}-new" / old).unlink(missing_ok=True)
    write_sentencepiece(base / "unigram")
    write_smolvlm_words(base / "digit_bpe")
    return {path.name: path for path in base.iterdir()}


@pytest.mark.parametrize("kind", WRITERS)
def test_both_ways_of_storing_words_are_read_alike(kind: str, folders: dict[str, Path]) -> None:
    old, new = read_words(folders[kind]), read_words(folders[f"{kind}-new"])
    assert (old.kind, old.pieces, old.merges, old.lowercase) == (kind, new.pieces, new.merges, new.lowercase)
    assert check_words(old, *page(old)) == check_words(new, *page(new)) == 6


@pytest.mark.parametrize("kind", ["byte_bpe", "digit_bpe", "clip_bpe", "unigram"])
def test_texts_are_cut_alike(kind: str, folders: dict[str, Path]) -> None:
    words = read_words(folders[kind])
    ours, theirs = device_tokenizer(*page(words)), reference_tokenizer(folders[kind], kind)

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(st.text(LETTERS, max_size=30) | st.text(" 'stdogre\n\t12.é", max_size=20))
    def compare(text: str) -> None:
        given_ids = ours.encode(text)[1:-1]
        assert given_ids == theirs(text, add_special_tokens=False)["input_ids"], unicodedata.name(
            text[0], "?"
        )
        if kind in ("byte_bpe", "digit_bpe"):
            said = theirs.decode(given_ids, clean_up_tokenization_spaces=False)
            assert ours.decode(given_ids) == said.strip()

    compare()


def test_a_tokenizer_with_rules_of_its_own_is_noticed(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    content = json.loads((folders["byte_bpe-new"] / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content), encoding="utf-8")
    words = read_words(tmp_path)
    with pytest.raises(ParityError, match="rules that a bundle cannot describe"):
        check_words(words, *page(words))


def test_a_configuration_that_overrules_the_file_is_noticed(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["wordpiece-new"], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "do_lower_case": False}), encoding="utf-8")
    words = read_words(tmp_path)
    with pytest.raises(ParityError, match="rules that a bundle cannot describe"):
        check_words(words, *page(words))


def test_a_sentencepiece_of_another_kind_is_refused(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    with (tmp_path / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a dog runs"] * 9), model_writer=file, vocab_size=14, model_type="bpe",
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    with pytest.raises(CheckpointError, match="reads unigrams"):
        read_words(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"\x0a\xffnothing")
    with pytest.raises(CheckpointError, match="damaged"):
        read_words(tmp_path)


def test_words_that_cannot_be_read(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        read_words(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text('{"model": {"type": "Unigram", "vocab": []}}')
    with pytest.raises(CheckpointError, match="Unigram"):
        read_words(tmp_path)
    file.write_text('{"model"')
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_words(tmp_path)
    file.write_text('{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}')
    with pytest.raises(CheckpointError, match="one id to two words"):
        read_words(tmp_path)
    words = read_words(folders["byte_bpe"])
    assert words.grown(len(words.pieces) + 2, {len(words.pieces): "[DEC]"}).pieces[-2:] == (
        "[DEC]",
        f"[unused-{len(words.pieces) + 1}]",
    )
    with pytest.raises(CheckpointError, match="another checkpoint"):
        words.grown(5)
    with pytest.raises(CheckpointError, match="as a mark"):
        words.page(pad=0, unknown=0, start=0, end=10**6, max_text_tokens=5)
