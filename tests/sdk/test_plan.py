"""Options completed by a bundle's defaults."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import Captioner, DecodeOptions
from tellapart.bundle import open_bundle
from tellapart.byte_pairs import BytePairTokenizer
from tellapart.decode import log_softmax
from tellapart.graphs import DecoderGraph
from tellapart.manifest import Decoding, Vocabulary
from tellapart.plan import DecodePlan, make_plan
from tellapart.tokenizer import Tokenizer

BUNDLE = Decoding(max_new_tokens=20, min_new_tokens=4, beams=3, length_penalty=0.8, no_repeat_ngram=2)


@pytest.fixture
def tokenizer(tiny_bundle: Path) -> Tokenizer:
    with open_bundle(tiny_bundle) as bundle:
        return Tokenizer.from_bundle(bundle)


def plan(tokenizer: Tokenizer, **options: Any) -> DecodePlan:
    return make_plan(DecodeOptions(**options), BUNDLE, tokenizer)


def test_what_is_left_open_is_as_the_bundle_says(tokenizer: Tokenizer) -> None:
    rules = plan(tokenizer).rules
    assert (rules.max_new_tokens, rules.min_new_tokens, rules.no_repeat_ngram) == (20, 4, 2)
    assert (rules.length_penalty, plan(tokenizer).beams) == (0.8, 3)
    assert make_plan(None, BUNDLE, tokenizer) == plan(tokenizer)


def test_what_is_asked_for_wins_also_where_it_is_zero(tokenizer: Tokenizer) -> None:
    asked = plan(
        tokenizer, max_new_tokens=9, min_new_tokens=0, beams=1, length_penalty=0.0, no_repeat_ngram=0
    )
    rules = asked.rules
    assert (rules.max_new_tokens, rules.min_new_tokens, rules.no_repeat_ngram) == (9, 0, 0)
    assert (rules.length_penalty, asked.beams) == (0.0, 1)


def test_a_default_gives_way_to_an_option_it_contradicts(tokenizer: Tokenizer) -> None:
    assert plan(tokenizer, max_new_tokens=2).rules.min_new_tokens == 2
    assert plan(tokenizer, min_new_tokens=30).rules.max_new_tokens == 30
    assert plan(tokenizer, n_best=7).beams == 7
    assert plan(tokenizer, temperature=1.0, n_best=7).beams == 1


def test_a_deadline_counts_from_when_decoding_begins(tokenizer: Tokenizer) -> None:
    made = plan(tokenizer, deadline_ms=5000)
    assert made.rules.deadline_s is None
    deadline_s = made.rules_from_now().deadline_s
    assert deadline_s is not None
    assert 4 < deadline_s - time.monotonic() <= 5
    assert plan(tokenizer).rules_from_now().deadline_s is None


def test_chance_comes_from_seed_and_number_alone(tokenizer: Tokenizer) -> None:
    seeded = plan(tokenizer, temperature=1.0, seed=3)
    draws = [seeded.generator(number).random() for number in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    free = plan(tokenizer, temperature=1.0)
    assert free.generator(0).random() != free.generator(0).random()


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 3}, {"temperature": 3.0, "seed": 1}], ids=str)
def test_marks_and_unknown_are_never_generated(
    tiny_bundle: Path,
    toy_images: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    step = DecoderGraph.step

    def eager(self: DecoderGraph, ids: np.ndarray, cache: Any) -> np.ndarray:
        logprobs = step(self, ids, cache)
        logprobs[:, :3] = 5  # [PAD], [UNK], [CLS] by the vocabulary's first lines
        return log_softmax(logprobs)

    monkeypatch.setattr(DecoderGraph, "step", eager)
    with Captioner.open(tiny_bundle) as captioner:
        caption = captioner.caption(toy_images["red"], options=DecodeOptions(**options))
    assert caption.token_ids
    assert min(caption.token_ids) > 3


def test_one_mark_for_everything_is_not_ruled_out() -> None:
    marks = dict.fromkeys(("pad", "unknown", "start", "end"), "<|endoftext|>")
    page = Vocabulary(kind="byte_bpe", merges="merges.txt", **marks)
    words = BytePairTokenizer.from_files(page, "a\nb\n<|endoftext|>", "")
    rules = make_plan(None, BUNDLE, words).rules
    assert (rules.start_id, rules.end_id, rules.banned_ids) == (2, 2, ())
