"""Decoding against brute force: a toy language model small enough to write every caption down.

The toy's next-token chances are a function of the whole prefix, drawn once from a seeded generator, so any
mistake in reordering a cache changes the answer. Its cache is the list of prefixes.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tellapart.beams import beam_search
from tellapart.decode import Hypothesis, Rules, greedy, log_softmax, sample, stream
from tellapart.errors import UsageError

PAD, UNK, CLS, SEP = range(4)
SIZE = 8  # 4 special pieces and 4 words
WORDS = range(4, SIZE)


class Prefixes:
    """A cache that remembers the tokens of each row, and which image it belongs to."""

    def __init__(self, images: list[int]) -> None:
        self.paths = [(image,) for image in images]
        self.steps: list[int] = []

    @property
    def rows(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> None:
        self.paths = [self.paths[row] for row in rows]


def chances(path: tuple[int, ...]) -> np.ndarray:
    """(SIZE,) float32 natural-log chances after (image, start, pieces...); every token has some."""
    logits = np.random.default_rng(path).normal(scale=1.5, size=(1, SIZE)).astype(np.float32)
    logits[0, SEP] += 0.3 * (len(path) - 3)
    return log_softmax(logits)[0]


def step(ids: np.ndarray, cache: Prefixes) -> np.ndarray:
    assert ids.shape == (cache.rows,)
    cache.paths = [(*path, int(token)) for path, token in zip(cache.paths, ids, strict=True)]
    cache.steps.append(cache.rows)
    return np.stack([chances(path) for path in cache.paths])


def rules(**changes: float) -> Rules:
    values = {"start_id": CLS, "end_id": SEP, "banned_ids": (PAD, UNK, CLS), "max_new_tokens": 4, **changes}
    return Rules(**values)  # type: ignore[arg-type]


def every_caption(image: int, longest: int) -> dict[tuple[int, ...], list[float]]:
    """All captions of up to `longest` pieces with the log-probabilities of pieces and end mark."""
    found = {}
    for length in range(longest + 1):
        for ids in itertools.product(WORDS, repeat=length):
            path = (image, CLS)
            logprobs = []
            for token in (*ids, SEP):
                logprobs.append(float(chances(path)[token]))
                path = (*path, token)
            found[ids] = logprobs
    return found


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("image", [1, 2, 3])
def test_a_beam_of_full_width_finds_what_brute_force_finds(image: int, penalty: float) -> None:
    scores = {
        ids: sum(logprobs) / len(logprobs) ** penalty for ids, logprobs in every_caption(image, 3).items()
    }
    best = sorted(scores, key=lambda ids: -scores[ids])[:5]
    [found] = beam_search(
        step,
        Prefixes([image]),
        rules=rules(max_new_tokens=3, length_penalty=penalty),
        beams=4**3 + 1,
        n_best=5,
        stop="exact",
    )
    assert [hypothesis.ids for hypothesis in found] == best
    assert [hypothesis.score for hypothesis in found] == pytest.approx(
        [scores[ids] for ids in best], abs=1e-5
    )
    assert all(hypothesis.finished for hypothesis in found)


@pytest.mark.parametrize("longest", [1, 3, 8])
def test_greedy_equals_one_beam_and_picks_the_likeliest_each_time(longest: int) -> None:
    images = list(range(20))
    alone = greedy(step, Prefixes(images), rules=rules(max_new_tokens=longest))
    beams = beam_search(step, Prefixes(images), rules=rules(max_new_tokens=longest), beams=1)
    assert [[hypothesis] for hypothesis in alone] == [
        [replace(hypothesis, end_logprobs=()) for hypothesis in found] for found in beams
    ]
    for [hypothesis] in beams:
        for place, end in enumerate(hypothesis.end_logprobs):
            image = beams.index([hypothesis])
            assert end == chances((images[image], CLS, *hypothesis.ids[:place]))[SEP]
        assert len(hypothesis.end_logprobs) == len(hypothesis.ids)
    for image, hypothesis in zip(images, alone, strict=True):
        path, ids = (image, CLS), []
        for _ in range(longest + 1):
            row = chances(path)
            row[[PAD, UNK, CLS]] = -np.inf
            path = (*path, int(row.argmax()))
            ids.append(path[-1])
            if ids[-1] == SEP:
                break
        finished = ids[-1] == SEP
        assert hypothesis.finished == finished
        assert list(hypothesis.ids) == (ids[:-1] if finished else ids[:longest])
        assert len(hypothesis.logprobs) == len(hypothesis.ids) + finished
    assert longest > 1 or not all(hypothesis.finished for hypothesis in alone)


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_a_batch_gives_each_image_what_it_gets_alone(beams: int) -> None:
    images = list(range(12))
    together = beam_search(step, Prefixes(images), rules=rules(max_new_tokens=6), beams=beams, n_best=2)
    alone = [
        beam_search(step, Prefixes([image]), rules=rules(max_new_tokens=6), beams=beams, n_best=2)[0]
        for image in images
    ]
    assert together == alone
    assert greedy(step, Prefixes(images), rules=rules()) == [
        greedy(step, Prefixes([image]), rules=rules())[0] for image in images
    ]


def test_the_likely_stop_is_never_better_than_the_exact_one_and_costs_less() -> None:
    images = list(range(30))
    likely, exact = Prefixes(images), Prefixes(images)
    short = beam_search(step, likely, rules=rules(max_new_tokens=10), beams=3)
    full = beam_search(step, exact, rules=rules(max_new_tokens=10), beams=3, stop="exact")
    assert all(one.score <= other.score for [one], [other] in zip(short, full, strict=True))
    assert sum(one == other for one, other in zip(short, full, strict=True)) >= 24
    assert sum(likely.steps) < 0.8 * sum(exact.steps)


def test_ended_rows_cost_nothing() -> None:
    cache = Prefixes(list(range(16)))
    found = greedy(step, cache, rules=rules(max_new_tokens=8))
    assert sum(cache.steps) == sum(len(hypothesis.logprobs) for hypothesis in found) + sum(
        not hypothesis.finished for hypothesis in found
    )
    cache = Prefixes(list(range(16)))
    beam_search(step, cache, rules=rules(max_new_tokens=8), beams=3)
    assert cache.steps[-1] < cache.steps[1] == 48


def test_special_pieces_never_come_even_where_they_are_likeliest() -> None:
    def eager(ids: np.ndarray, cache: Prefixes) -> np.ndarray:
        logits = step(ids, cache)
        logits[:, [PAD, UNK, CLS]] += 20
        return log_softmax(logits)

    found: list[Hypothesis] = [
        *greedy(eager, Prefixes([1, 2]), rules=rules()),
        *itertools.chain(*beam_search(eager, Prefixes([1, 2]), rules=rules(), beams=5, n_best=5)),
        *sample(
            eager,
            Prefixes([1] * 20),
            rules=rules(),
            temperature=5.0,
            top_p=1.0,
            generators=[np.random.default_rng(seed) for seed in range(20)],
        ),
    ]
    assert {token for hypothesis in found for token in hypothesis.ids} <= set(WORDS)
    assert any(hypothesis.ids for hypothesis in found)


def test_sampled_captions_come_as_often_as_the_model_says() -> None:
    count = 6000
    drawn = sample(
        step,
        Prefixes([7] * count),
        rules=rules(max_new_tokens=2, banned_ids=()),
        temperature=1.0,
        top_p=1.0,
        generators=[np.random.default_rng([5, number]) for number in range(count)],
    )
    seen = Counter(hypothesis.ids[:1] for hypothesis in drawn)
    first = np.exp(chances((7, CLS)).astype(float)).tolist()
    for token in range(SIZE):
        share = first[token]
        ids = () if token == SEP else (token,)
        assert seen[ids] / count == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / count))


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.5, 1.0), (2.0, 1.0), (1.0, 0.6), (0.7, 0.9), (1.0, 1e-9)]
)
def test_temperature_and_top_p_shape_the_first_token(temperature: float, top_p: float) -> None:
    count = 3000
    drawn = sample(
        step,
        Prefixes([9] * count),
        rules=rules(max_new_tokens=1),
        temperature=temperature,
        top_p=top_p,
        generators=[np.random.default_rng([6, number]) for number in range(count)],
    )
    # The same by the book: allowed tokens, chances to the power 1/T, the smallest set that reaches top_p.
    weight = {token: float(np.exp(chances((9, CLS))[token])) ** (1 / temperature) for token in (SEP, *WORDS)}
    kept: dict[int, float] = {}
    for token in sorted(weight, key=lambda token: -weight[token]):
        if sum(kept.values()) < top_p * sum(weight.values()):
            kept[token] = weight[token]
    seen = Counter(hypothesis.ids[0] if hypothesis.ids else SEP for hypothesis in drawn)
    assert set(seen) <= set(kept)
    for token, value in kept.items():
        share = value / sum(kept.values())
        assert seen[token] / count == pytest.approx(
            share, abs=4 * np.sqrt(share * (1 - share) / count) + 1e-9
        )


def test_a_seed_gives_one_text_whatever_the_batch() -> None:
    def draw(images: list[int]) -> list[Hypothesis]:
        return sample(
            step,
            Prefixes(images),
            rules=rules(max_new_tokens=6),
            temperature=1.3,
            top_p=0.95,
            generators=[np.random.default_rng(11) for _ in images],
        )

    together = draw([3, 4, 5, 3])
    assert together == [draw([image])[0] for image in (3, 4, 5, 3)]
    assert together[0] == together[3] != together[1]


def test_tiny_temperatures_are_greedy() -> None:
    drawn = sample(
        step,
        Prefixes([1, 2, 3]),
        rules=rules(),
        temperature=1e-300,
        top_p=1.0,
        generators=[np.random.default_rng(0)] * 3,
    )
    assert drawn == greedy(step, Prefixes([1, 2, 3]), rules=rules())


def test_stream_gives_the_greedy_ids_and_stops_with_its_reader() -> None:
    limits = rules(max_new_tokens=6)
    found = greedy(step, Prefixes([*range(20)]), rules=limits)
    image, whole = max(enumerate(found), key=lambda item: len(item[1].ids))
    assert len(whole.ids) >= 3
    assert [tuple(stream(step, Prefixes([row]), rules=limits)) for row in range(20)] == [
        hypothesis.ids for hypothesis in found
    ]
    cache = Prefixes([image])
    tokens = stream(step, cache, rules=limits)
    assert next(tokens) == whole.ids[0]
    tokens.close()
    assert cache.steps == [1]


def test_min_new_tokens_holds_the_end_mark_back() -> None:
    for fewest in (0, 2, 5):
        limits = rules(min_new_tokens=fewest, max_new_tokens=6)
        found = [
            *greedy(step, Prefixes(list(range(10))), rules=limits),
            *itertools.chain(*beam_search(step, Prefixes(list(range(10))), rules=limits, beams=3)),
        ]
        assert min(len(hypothesis.ids) for hypothesis in found) >= fewest
    assert any(len(hypothesis.ids) < 5 for hypothesis in greedy(step, Prefixes([*range(10)]), rules=rules()))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_run_of_pieces_comes_twice(size: int) -> None:
    def parrot(ids: np.ndarray, cache: Prefixes) -> np.ndarray:
        logits = 0.05 * step(ids, cache)
        logits[:, 4] += 3  # "word 4" for ever
        return log_softmax(logits)

    def runs(ids: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [ids[place : place + size] for place in range(len(ids) - size + 1)]

    free = greedy(parrot, Prefixes([1]), rules=rules(max_new_tokens=9))[0].ids
    assert len(runs(free)) > len(set(runs(free)))
    limits = rules(max_new_tokens=9, no_repeat_ngram=size, min_new_tokens=9)
    for hypothesis in (
        *greedy(parrot, Prefixes([1, 2]), rules=limits),
        *itertools.chain(*beam_search(parrot, Prefixes([1, 2]), rules=limits, beams=3)),
    ):
        assert len(runs(hypothesis.ids)) == len(set(runs(hypothesis.ids)))
        # Of four words there are four runs of one and sixteen of two; where none is left the caption ends
        # although it is short.
        assert len(hypothesis.ids) == 4 if size == 1 else len(hypothesis.ids) >= 6


def test_a_limit_without_the_end_mark_is_unfinished() -> None:
    def endless(ids: np.ndarray, cache: Prefixes) -> np.ndarray:
        logits = step(ids, cache)
        logits[:, SEP] -= 50
        return log_softmax(logits)

    [one] = greedy(endless, Prefixes([1]), rules=rules(max_new_tokens=5))
    [several] = beam_search(endless, Prefixes([1]), rules=rules(max_new_tokens=5), beams=3, n_best=3)
    assert (len(one.ids), one.finished) == (5, False)
    assert [(len(found.ids), found.finished) for found in several] == [(5, False)] * 3
    assert several[0].score == max(found.score for found in several) >= one.score
    assert len({found.ids for found in several}) == 3


def test_a_passed_deadline_hands_back_the_best_so_far() -> None:
    def slow(ids: np.ndarray, cache: Prefixes) -> np.ndarray:
        time.sleep(0.02)
        logits = step(ids, cache)
        logits[:, SEP] -= 50
        return log_softmax(logits)

    past = rules(max_new_tokens=50, deadline_s=time.monotonic() - 1)
    [first] = greedy(step, Prefixes([1]), rules=past)
    assert (len(first.logprobs), len(beam_search(step, Prefixes([1]), rules=past, beams=3)[0])) == (1, 1)
    soon = rules(max_new_tokens=50, deadline_s=time.monotonic() + 0.1)
    [found] = beam_search(slow, Prefixes([1]), rules=soon, beams=3)[0]
    assert not found.finished
    assert 1 <= len(found.ids) <= 6


def test_none_and_one_rows_and_wrong_numbers() -> None:
    assert greedy(step, Prefixes([]), rules=rules()) == []
    assert beam_search(step, Prefixes([]), rules=rules(), beams=3) == []
    for beams, n_best in ((0, 1), (2, 3), (2, 0)):
        with pytest.raises(UsageError):
            beam_search(step, Prefixes([1]), rules=rules(), beams=beams, n_best=n_best)
    for temperature, top_p, sources in ((0.0, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 1.0, 2)):
        with pytest.raises(UsageError):
            sample(
                step,
                Prefixes([1]),
                rules=rules(),
                temperature=temperature,
                top_p=top_p,
                generators=[np.random.default_rng(0)] * sources,
            )


def test_log_softmax_sums_to_one_and_shows_what_is_broken() -> None:
    rows = log_softmax(np.array([[1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0]], np.float32))
    assert np.exp(rows).sum(axis=1) == pytest.approx([1, 1])
    assert rows[1] == pytest.approx(np.log([1 / 3] * 3))
    with np.errstate(invalid="ignore"):
        assert np.isnan(log_softmax(np.array([[1.0, np.nan]], np.float32))).all()
