"""Rewards against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tellapart_training.metrics import DocumentFrequencies, cider_d  # noqa: E402
from tellapart_training.metrics.fluency import TextLikelihood  # noqa: E402
from tellapart_training.reward_parts import TuningRetrieval  # noqa: E402
from tellapart_training.rewards import (  # noqa: E402
    END_WORD,
    CiderReward,
    DrawnCaptions,
    FaithfulnessReward,
    FluencyReward,
    GrammarReward,
    SelfRetrievalReward,
    content_words,
    retrieval_logprobs,
    weighted_sum,
)

pytestmark = pytest.mark.train
REFERENCES = [["a red dog runs", "a dog on grass"], ["a cat jumps", "a small cat on snow"]]


def _drawn(texts: Sequence[str], rows: Sequence[int], **other: Any) -> DrawnCaptions:
    pool = other.get("pool", sorted(set(rows)))
    return DrawnCaptions(
        texts=texts, ended=other.get("ended", [True] * len(texts)), rows=rows,
        bags=other.get("bags", [0] * len(rows)), pool=pool, pool_bags=other.get("pool_bags", [0] * len(pool)),
    )  # fmt: skip


def test_self_retrieval_has_the_check_values_of_method_4_1() -> None:
    # A caption whose cosines with three images are 0.30, 0.28 and 0.25, at scale 100.
    texts = torch.tensor([[1.0, 0.0]])
    images = torch.tensor([[cosine, math.sqrt(1 - cosine**2)] for cosine in (0.30, 0.28, 0.25)])
    everyone = torch.ones(1, 3, dtype=torch.bool)
    found = retrieval_logprobs(texts, images, torch.tensor([0]), everyone, 100.0)
    assert float(found) == pytest.approx(-0.132845, abs=2e-5)
    alike = torch.tensor([[0.3, math.sqrt(1 - 0.09)]]).expand(100, 2)
    uniform = retrieval_logprobs(texts, alike, torch.tensor([7]), torch.ones(1, 100, dtype=torch.bool), 100.0)
    assert float(uniform) == pytest.approx(-math.log(100), abs=1e-4)  # 4.605


class _Words:
    """A caption "i" points at the i-th axis, and a little at all others."""

    def __init__(self) -> None:
        self.calls: list[Sequence[str]] = []

    def embed_texts(self, texts: Sequence[str]) -> Any:
        self.calls.append(texts)
        rows = torch.full((len(texts), 6), 0.1)
        for index, text in enumerate(texts):
            rows[index, int(text)] = 1.0
        return torch.nn.functional.normalize(rows, dim=1)


def test_denominators_count_the_whole_batch_or_the_own_bag() -> None:
    drawn = _drawn(
        ["0", "1", "4", "5"], [0, 1, 4, 4], bags=[0, 0, 1, 1], pool=[0, 1, 4, 5], pool_bags=[0, 0, 1, 1]
    )
    scale, norm = 3.0, math.sqrt(1.05)
    own, other = scale / norm, scale * 0.1 / norm

    def expected(own: float, rivals: Sequence[float]) -> float:
        return own - math.log(math.exp(own) + sum(map(math.exp, rivals)))

    for denominator, others in (("batch", 3), ("bag", 1)):
        reward = SelfRetrievalReward(_Words(), torch.eye(6), scale=scale, denominator=denominator)
        found = reward(drawn).tolist()
        right = expected(own, [other] * others)
        wrong = expected(other, [own] + [other] * (others - 1))  # caption "5" is of image 4
        assert found == pytest.approx([right, right, right, wrong], abs=1e-5)


def test_an_image_in_two_bags_is_one_candidate() -> None:
    twice = _drawn(["0", "2"], [0, 2], bags=[0, 1], pool=[0, 1, 2, 1], pool_bags=[0, 0, 1, 1])
    once = _drawn(["0", "2"], [0, 2], pool=[0, 1, 2])
    reward = SelfRetrievalReward(_Words(), torch.eye(6), scale=5.0, denominator="batch")
    assert reward(twice).tolist() == reward(once).tolist()
    bagged = SelfRetrievalReward(_Words(), torch.eye(6), scale=5.0, denominator="bag")
    assert bagged(twice).tolist() == pytest.approx([float(bagged(_drawn(["0"], [0], pool=[0, 1])))] * 2)


def test_a_step_embeds_texts_and_no_image() -> None:
    words = _Words()
    assert not hasattr(words, "embed_images")
    SelfRetrievalReward(words, torch.eye(6), scale=1.0, denominator="batch")(_drawn(["3"], [3]))
    assert words.calls == [["3"]]


def test_cider_d_counts_the_end_as_a_word_and_frequencies_over_all_training_images() -> None:
    found = CiderReward(REFERENCES)(_drawn(["a red dog runs"] * 2, [0, 0], ended=[True, False]))
    words = [[[*text.split(), END_WORD] for text in texts] for texts in REFERENCES]
    texts = [["a", "red", "dog", "runs", END_WORD], ["a", "red", "dog", "runs"]]
    frequencies = DocumentFrequencies.of_references(words)
    expected = cider_d(texts, [words[0], words[0]], frequencies=frequencies)
    assert found.tolist() == pytest.approx(expected)
    assert found[0] > found[1]


def test_faithfulness_is_minus_the_share_of_unsupported_content_words() -> None:
    reward = FaithfulnessReward([["Two dogs are running on the grass.", "A brown dog runs"], ["a cat"]])
    texts = ["a dog runs in the grass", "two brown cats running", "on the in a", "a dog"]
    # dog, run, grass; of two, brown, cat, run one is unsupported; nothing said; another image's dog.
    assert reward(_drawn(texts, [0, 0, 0, 1])).tolist() == [0.0, -0.25, 0.0, -1.0]


@pytest.mark.parametrize(
    "forms",
    [
        ("run", "runs", "running"), ("ride", "rides", "riding"), ("dress", "dresses"), ("baby", "babies"),
        ("carry", "carries", "carried", "carrying"), ("tie", "ties"), ("tree", "trees"), ("box", "boxes"),
        ("roll", "rolls", "rolled", "rolling"), ("horse", "horses"), ("sit", "sits", "sitting"),
    ],
)  # fmt: skip
def test_forms_of_a_word_are_folded(forms: tuple[str, ...]) -> None:
    assert len({word for form in forms for word in content_words(form)}) == 1


def test_different_words_stay_different() -> None:
    text = "dog cat bus grass red bed swing ball string ring car boy girl"
    assert len(content_words(text)) == len(text.split())


def test_grammar_asks_the_judge_for_every_text() -> None:
    class Judge:
        def probability(self, texts: Sequence[str]) -> Any:
            return torch.tensor([len(text) / 10 for text in texts])

    assert GrammarReward(Judge())(_drawn(["ab", "abcd"], [0, 1])).tolist() == pytest.approx([0.2, 0.4])


def test_fluency_is_the_mean_over_the_pieces_of_each_text() -> None:
    class Model:
        def likelihoods(self, texts: Sequence[str]) -> list[TextLikelihood]:
            return [TextLikelihood(-1.5 * len(text), len(text.split()) + 1) for text in texts]

    found = FluencyReward(Model())(_drawn(["a dog", ""], [0, 1]))
    assert found.tolist() == [pytest.approx(-2.5), 0.0]
    assert found.dtype == torch.float32


def test_the_total_is_a_weighted_sum() -> None:
    terms = {"one": torch.tensor([1.0, 2.0]), "two": torch.tensor([-3.0, 0.5])}
    assert weighted_sum(terms, {"one": 0.5, "two": 2.0}).tolist() == [-5.5, 2.0]


def test_tuning_figures_are_perfect_for_an_oracle_and_chance_for_shuffled_captions() -> None:
    """Smoke test (iv) of method 10, on 400 images in groups of 100."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(400, 64, generator=generator), dim=1)

    class Oracle:
        def embed_texts(self, texts: Sequence[str]) -> Any:
            return rows[[int(text) for text in texts]]

    retrieval = TuningRetrieval(Oracle(), rows, 100.0, 3)
    named = [str(index) for index in range(400)]
    figures = retrieval.figures(named)
    assert figures["self_retrieval_r1"] == 1.0
    assert figures["self_retrieval"] > -0.01
    shuffled = [named[place] for place in torch.randperm(400, generator=generator).tolist()]
    assert (
        retrieval.figures(shuffled)["self_retrieval_r1"] < 0.03
    )  # chance is 0.01, with a deviation of 0.005
    assert retrieval.figures(["5"]) == {}
