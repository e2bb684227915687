"""Contrast against brute force: the formula written out, on a toy model with few enough captions to list."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tellapart import Captioner, DecodeOptions, UsageError
from tellapart.bag import choose_apart
from tellapart.beams import beam_search
from tellapart.contrast import (
    Contrast,
    ContrastCache,
    choose_partners,
    contrast_step,
    log_mean,
    sharpen,
)
from tellapart.decode import Hypothesis, Rules, log_softmax
from tellapart.errors import ShapeError
from tellapart.types import BagResult

PAD, UNK, CLS, SEP = range(4)
SIZE = 7  # 4 special pieces and 3 words
RULES = Rules(start_id=CLS, end_id=SEP, banned_ids=(PAD, UNK, CLS), max_new_tokens=3)
BAG = (11, 12, 13)


class Prefixes:
    """A cache that remembers the tokens of each row, and which image it belongs to."""

    def __init__(self, images: tuple[int, ...]) -> None:
        self.paths: list[tuple[int, ...]] = [(image,) for image in images]

    @property
    def rows(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> None:
        self.paths = [self.paths[row] for row in rows]


def chances(path: tuple[int, ...]) -> np.ndarray:
    """(SIZE,) float32 natural-log chances after (image, start, pieces...)."""
    logits = np.random.default_rng(path).normal(scale=1.5, size=(1, SIZE)).astype(np.float32)
    return log_softmax(logits)[0]


def step(ids: np.ndarray, cache: Prefixes) -> np.ndarray:
    cache.paths = [(*path, int(token)) for path, token in zip(cache.paths, ids, strict=True)]
    return np.stack([chances(path) for path in cache.paths])


def by_hand(own: int, others: tuple[int, ...], contrast: Contrast) -> dict[tuple[int, ...], float]:
    """Every caption's steered score by the formula of the module, in plain floats."""
    found = {}
    for length in range(RULES.max_new_tokens + 1):
        for ids in itertools.product(range(4, SIZE), repeat=length):
            total, prefix = 0.0, (CLS,)
            for token in (*ids, SEP):
                chance = [math.exp(value) for value in chances((own, *prefix))]
                allowed = [place for place in range(SIZE) if place not in RULES.banned_ids]
                best = max(chance[place] for place in allowed)
                raised = {}
                for place in allowed:
                    if chance[place] >= contrast.floor * best:
                        mean = sum(math.exp(chances((other, *prefix))[place]) for other in others)
                        mean /= len(others)
                        raised[place] = chance[place] * (chance[place] / mean) ** contrast.weight
                if token not in raised:
                    total = -math.inf
                    break
                total += math.log(raised[token] / sum(raised.values()))
                prefix = (*prefix, token)
            found[ids] = total / (length + 1)
    return found


def search(
    partners: list[list[int]], contrast: Contrast, *, beams: int, rules: Rules = RULES
) -> list[list[Hypothesis]]:
    return beam_search(
        contrast_step(step),
        ContrastCache(Prefixes(BAG), np.array(partners)),
        rules=rules,
        beams=beams,
        n_best=min(5, beams),
        stop="exact",
        guide=lambda allowed, cache: sharpen(
            allowed, cache.others, weight=contrast.weight, floor=contrast.floor
        ),
    )


@pytest.mark.parametrize("contrast", [Contrast(), Contrast(weight=2.0, floor=0.01), Contrast(floor=0.6)])
@pytest.mark.parametrize("partners", [[[0, 1], [1, 2], [2, 0]], [[0, 1, 2], [1, 0, 2], [2, 0, 1]]])
def test_a_beam_of_full_width_finds_what_the_formula_ranks_first(
    partners: list[list[int]], contrast: Contrast
) -> None:
    found = search(partners, contrast, beams=60)
    for own, (first, *rest) in enumerate(partners):
        assert first == own
        scores = by_hand(BAG[own], tuple(BAG[other] for other in rest), contrast)
        best = [ids for ids in sorted(scores, key=lambda ids: -scores[ids]) if scores[ids] > -math.inf][:5]
        assert [entry.ids for entry in found[own][: len(best)]] == best
        assert [entry.score for entry in found[own][: len(best)]] == pytest.approx(
            [scores[ids] for ids in best], abs=1e-4
        )
    plain = beam_search(step, Prefixes(BAG), rules=RULES, beams=60, n_best=5, stop="exact")
    assert [group[0].ids for group in plain] != [group[0].ids for group in found]


def test_hypotheses_carry_the_model_s_own_log_probabilities() -> None:
    for own, group in enumerate(search([[0, 1], [1, 0], [2, 0]], Contrast(weight=1.5), beams=4)):
        for entry in group:
            prefix: tuple[int, ...] = (BAG[own], CLS)
            wanted = []
            for token in (*entry.ids, SEP)[: len(entry.logprobs)]:
                wanted.append(float(chances(prefix)[token]))
                prefix = (*prefix, token)
            assert list(entry.logprobs) == pytest.approx(wanted, abs=1e-6)


def test_no_weight_and_partners_that_are_oneself_give_plain_search() -> None:
    # With banned pieces the chances of the others would be raised to sum to 1.
    rules = replace(RULES, banned_ids=())
    plain = beam_search(step, Prefixes(BAG), rules=rules, beams=4, n_best=4, stop="exact")
    free = Contrast(weight=0.0, floor=1e-9)
    for found in (
        search([[0, 1], [1, 2], [2, 0]], free, beams=4, rules=rules),
        search([[0, 0], [1, 1], [2, 2]], Contrast(weight=3.0, floor=1e-9), beams=4, rules=rules),
    ):
        assert [[entry.ids for entry in group] for group in found] == [
            [entry.ids for entry in group] for group in plain
        ]


rows = hnp.arrays(np.float32, (2, 6), elements=st.floats(-8, 8, width=32))


@settings(max_examples=60, deadline=None)
@given(own=rows, others=rows, weight=st.floats(0, 3), floor=st.floats(0.01, 1), banned=st.integers(0, 5))
def test_sharpened_scores_are_chances_of_plausible_tokens_only(
    own: np.ndarray, others: np.ndarray, weight: float, floor: float, banned: int
) -> None:
    own, others = log_softmax(own), log_softmax(others)
    own[:, banned] = -np.inf
    scores = sharpen(own, others, weight=weight, floor=floor)
    assert np.exp(scores).sum(axis=1) == pytest.approx([1, 1], abs=1e-4)
    assert (scores[:, banned] == -np.inf).all()
    assert np.isfinite(scores[np.arange(2), own.argmax(axis=1)]).all()
    below = own < own.max(axis=1, keepdims=True) + math.log(floor) - 1e-5
    assert (scores[below] == -np.inf).all()
    if weight == 0 and floor == 1:
        assert (np.exp(scores).max(axis=1) > 0.1).all()


def test_the_mean_is_of_chances_not_of_their_logs() -> None:
    logprobs = np.log(np.array([[[0.9, 0.1], [0.1, 0.9]]], np.float32))
    assert np.exp(log_mean(logprobs)) == pytest.approx(np.array([[0.5, 0.5]]), abs=1e-6)


def test_partners_are_the_most_alike_that_are_not_the_same_picture() -> None:
    angles = np.array([0.0, 0.0, 0.3, 0.5, 2.0])
    image_rows = np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
    assert choose_partners(image_rows, others=2).tolist() == [
        [0, 2, 3], [1, 2, 3], [2, 3, 0], [3, 2, 0], [4, 3, 2]
    ]  # fmt: skip
    assert choose_partners(image_rows[:2], others=2).tolist() == [[0, 0], [1, 1]]
    assert choose_partners(image_rows[:1], others=2).tolist() == [[0]]


@pytest.mark.parametrize(
    "fields", [{"weight": -1}, {"weight": math.nan}, {"floor": 0}, {"floor": 1.5}, {"others": 0}]
)
def test_values_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="contrast needs"):
        Contrast(**fields)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="partners"):
        ContrastCache(Prefixes(BAG), np.array([[0], [1], [2]]))


@pytest.fixture
def captioner(tiny_bundle: Path) -> Iterator[Captioner]:
    with Captioner.open(tiny_bundle) as opened:
        yield opened


def said(result: BagResult) -> list[tuple[str, tuple[int, ...], float]]:
    return [(entry.text, entry.token_ids, entry.mean_logprob) for entry in result.captions]


def test_a_bag_is_told_apart_whatever_its_order(
    captioner: Captioner, toy_images: dict[str, np.ndarray]
) -> None:
    images = [toy_images[name] for name in ("red", "red_blue", "blue", "yellow_green")]
    result = captioner.bag(images, mode="contrast")
    assert said(result) == said(captioner.bag(images, mode="contrast"))
    turned = said(captioner.bag(images[::-1], mode="contrast"))[::-1]
    assert [text for text, *_ in turned] == [text for text, *_ in said(result)]
    plain = captioner.bag(images, mode="plain")
    assert result.recall_at_1 >= plain.recall_at_1
    assert [text for text, *_ in said(result)] != [text for text, *_ in said(plain)]
    greedy = captioner.bag(images, mode="contrast", options=DecodeOptions(beams=1))
    assert all(len(caption.alternatives) <= 1 for caption in greedy.captions)  # one steered, one plain


def test_one_image_duplicates_and_twenty(captioner: Captioner, toy_images: dict[str, np.ndarray]) -> None:
    red, blue = toy_images["red"], toy_images["blue"]
    one = captioner.bag([red], mode="contrast")
    alone = captioner.caption(red)
    assert said(one) == [(alone.text, alone.token_ids, alone.mean_logprob)]
    assert (one.ranks, one.margins, one.recall_at_1) == ((1,), (math.inf,), 1.0)
    twins = captioner.bag([red, red, blue], mode="contrast")
    assert twins.captions[0].text == twins.captions[1].text
    assert twins.ranks == (2, 2, 1)
    many = captioner.bag([image for image in toy_images.values() for _ in range(3)][:20], mode="contrast")
    assert many.similarity.shape == (20, 20)


def test_the_chosen_candidate_weighs_likelihood_fit_listener_and_support(
    captioner: Captioner, toy_images: dict[str, np.ndarray]
) -> None:
    images = [toy_images[name] for name in ("red", "red_blue", "blue", "yellow_green")]
    result = captioner.bag(images, mode="contrast", options=DecodeOptions(beams=6))
    retriever = captioner.retriever
    image_rows = retriever.embed_images(images).astype(np.float64)
    for own, chosen in enumerate(result.captions):
        first = captioner.caption(images[own], options=DecodeOptions(beams=6, n_best=6, rerank=0))
        beams = {entry.token_ids: entry for entry in (first, *first.alternatives)}
        # Each beam has its end mark here, one piece more than ids.
        chance = {ids: math.exp(entry.mean_logprob * (len(ids) + 1)) for ids, entry in beams.items()}
        worths = []
        for entry in (chosen, *chosen.alternatives):
            cosines = image_rows @ retriever.embed_texts([entry.text])[0]
            listener = 5 * cosines[own] - math.log(np.exp(5 * cosines).sum())
            shares = [
                sum(chance[ids] for ids in chance if piece in ids) / sum(chance.values())
                for piece in set(entry.token_ids)
            ]
            borne_out = sum(math.log(share + 1e-3) for share in shares)
            worths.append(entry.mean_logprob + 8 * cosines[own] + 6 * listener + 0.2 * borne_out)
        assert worths[0] == pytest.approx(max(worths), abs=1e-4)
        # All of both searches, each text once.
        texts = [entry.text for entry in (chosen, *chosen.alternatives)]
        assert len(texts) == len(set(texts)) >= 6
        assert {entry.text for entry in beams.values()} <= set(texts)


def chosen_by(worths: list[list[float]], texts: list[str], *, rows: np.ndarray) -> list[str]:
    """Each letter of a text is a candidate, so images share those of the same letter."""
    places = choose_apart([np.array(worth) for worth in worths], [list(text) for text in texts], rows)
    return [text[place] for text, place in zip(texts, places, strict=True)]


def test_no_caption_is_given_to_two_images_while_there_is_another() -> None:
    apart = np.eye(3, dtype=np.float32)
    # All want "a", and the third image would lose most; then "b", and the first would.
    worths = [[2.0, 1.9, 0.0], [2.0, 1.0, 0.5], [2.0, -5.0, -6.0]]
    assert chosen_by(worths, ["abc", "abc", "abc"], rows=apart) == ["b", "c", "a"]
    # Where nobody disagrees each has its best, and an image without another choice repeats.
    assert chosen_by([[1.0, 2.0], [3.0, 1.0]], ["ab", "ab"], rows=apart[:2]) == ["b", "a"]
    assert chosen_by([[1.0], [1.0], [0.0, 9.0]], ["a", "a", "ab"], rows=apart) == ["a", "a", "b"]


def test_the_same_picture_twice_may_say_the_same() -> None:
    rows = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    worths = [[2.0, 1.9], [2.0, 1.0], [2.0, 1.8]]
    assert chosen_by(worths, ["ab", "ab", "ab"], rows=rows) == ["a", "a", "b"]


def test_drawn_look_alikes_get_captions_of_their_own() -> None:
    folder = Path(__file__).parents[2] / "samples" / "bag"
    with Captioner.open() as captioner:
        result = captioner.bag(sorted(folder.glob("*.jpg")), mode="contrast")
    assert len({caption.text for caption in result.captions}) == 3
