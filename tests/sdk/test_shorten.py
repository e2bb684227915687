"""Beginnings of captions that are captions: where the end was likely, with the chances that a search saw."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tellapart import Captioner, DecodeOptions
from tellapart.contrast import Contrast
from tellapart.decode import Hypothesis, Rules
from tellapart.kv_cache import KVCache
from tellapart.plan import make_plan
from tellapart.shorten import LEAST_END_LOGPROB, LEAST_PIECES, shortened
from tellapart.writer import BagCandidates, write_contrast

BAG = sorted((Path(__file__).parents[2] / "samples" / "bag").glob("*.jpg"))
RULES = Rules(start_id=2, end_id=3, length_penalty=1.0)


def test_a_caption_may_stop_where_the_end_was_likely() -> None:
    ids, logprobs = (10, 11, 12, 13, 14, 15, 16), (-1.0, -0.5, -0.25, -1.0, -2.0, -0.5, -0.125, -1.5)
    ends = (-1.0, -1.0, -1.0, -1.0, -2.0, -4.5, -3.0)
    found = list(shortened(Hypothesis(ids, logprobs, True, -1.0, ends), RULES))
    assert [(each.ids, each.logprobs) for each in found] == [
        (ids[:4], (*logprobs[:4], -2.0)),
        (ids[:6], (*logprobs[:6], -3.0)),
    ]
    assert [each.score for each in found] == pytest.approx([-4.75 / 5, -8.25 / 7])
    assert all(each.finished for each in found)
    assert LEAST_PIECES == 4


def test_not_shorter_than_asked_for_and_nothing_of_other_searches() -> None:
    ids, logprobs = tuple(range(10, 17)), (-1.0,) * 8
    every = Hypothesis(ids, logprobs, True, -1.0, (-1.0,) * 7)
    rules = Rules(start_id=2, end_id=3, min_new_tokens=6)
    assert [len(each.ids) for each in shortened(every, rules)] == [6]
    assert not list(shortened(Hypothesis(ids, logprobs, True, -1.0), RULES))


@pytest.fixture(scope="module")
def candidates() -> tuple[BagCandidates, list[list[float]]]:
    """Of the drawn bag by the embedded model, and what single steps say of each shorter caption."""
    with Captioner.open() as captioner:
        engine, views = captioner._engine, [captioner.look(path) for path in BAG]
        decoding = captioner.bundle.manifest.decoding
        plans = [
            make_plan(DecodeOptions(beams=beams, n_best=beams, rerank=0.0), decoding, engine.tokenizer)
            for beams in (3, 4)
        ]
        rows = captioner.retriever.embed_images(views)
        found = write_contrast(engine, rows, views, plans[0], Contrast(), spoken=plans[1])
        truth: list[list[float]] = []
        for view, captions in zip(views, found.shortened, strict=True):
            truth.append([])
            for caption in captions:
                cache, total = KVCache.empty(view.cross_kv), 0.0
                path = [engine.tokenizer.start_id, *caption.token_ids, engine.tokenizer.end_id]
                for piece, following in itertools.pairwise(path):
                    total += float(engine.decoder().step(np.array([piece]), cache)[0, following])
                truth[-1].append(total / (len(path) - 1))
    return found, truth


def test_what_is_said_of_a_shorter_caption_is_what_single_steps_say(
    candidates: tuple[BagCandidates, list[list[float]]],
) -> None:
    found, truth = candidates
    assert sum(map(len, truth)) > 3
    for captions, wanted, plain, steered in zip(
        found.shortened, truth, found.spoken, found.steered, strict=True
    ):
        assert (len(plain), len(steered)) == (4, 3)
        assert [caption.mean_logprob for caption in captions] == pytest.approx(wanted, abs=1e-4)
        longer = [caption.token_ids for caption in (*plain, *steered)]
        for caption in captions:
            ids = caption.token_ids
            assert any(ids == other[: len(ids)] and len(other) > len(ids) for other in longer)


def test_they_are_offered_only_where_asked_for(
    candidates: tuple[BagCandidates, list[list[float]]],
) -> None:
    found, _ = candidates
    assert found.beside_spoken(shorter=False) == found.steered
    offered = found.beside_spoken(shorter=True)
    assert [len(each) for each in offered] == [3 + len(each) for each in found.shortened]
    assert LEAST_END_LOGPROB == -4.0
