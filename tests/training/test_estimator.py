"""The estimator against exact expectations over every caption of a language small enough to list."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tellapart_model.config import END_ID, PAD_ID  # noqa: E402
from tellapart_training.estimator import (  # noqa: E402
    RunningMean,
    advantages_of,
    batch_average,
    kl_divergence,
    leave_one_out_advantage,
    policy_logprobs,
    reinforce_loss,
    token_logprobs,
)
from tellapart_training.losses import IGNORED  # noqa: E402

pytestmark = pytest.mark.train
# Four tokens that can be drawn (the end and three words; 0 to 2 are never drawn), captions of up to three.
WORDS, LONGEST, VOCABULARY = (4, 5, 6), 3, 7


def _captions() -> list[tuple[int, ...]]:
    found = []
    for length in range(LONGEST):
        found += [(*words, END_ID) for words in itertools.product(WORDS, repeat=length)]
    return found + list(itertools.product(WORDS, repeat=LONGEST))  # cut without an end


CAPTIONS = _captions()


class _Language(torch.nn.Module):
    """Logits that depend on every token before; a table, so that it is its own parameter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        prefixes = sorted({caption[:end] for caption in CAPTIONS for end in range(len(caption))})
        self.row_of = {prefix: row for row, prefix in enumerate(prefixes)}
        values = torch.randn(len(prefixes), VOCABULARY, generator=generator, dtype=torch.float64)
        self.table = torch.nn.Parameter(values.float())

    def logits(self, captions: list[tuple[int, ...]]) -> tuple[Any, Any]:
        """Logits (b, t, V) and labels (b, t) as the trainer has them."""
        rows = torch.zeros(len(captions), LONGEST, dtype=torch.int64)
        labels = torch.full((len(captions), LONGEST), IGNORED)
        for index, caption in enumerate(captions):
            for place, token in enumerate(caption):
                rows[index, place] = self.row_of[caption[:place]]
                labels[index, place] = token
        return self.table[rows], labels

    def logprobs(self, temperature: float = 1.0) -> Any:
        """Log-probability of every caption, by hand: plain softmax over the tokens that can be drawn."""
        total = []
        for caption in CAPTIONS:
            steps = [
                self.table[self.row_of[caption[:place]], 3:] / temperature for place in range(len(caption))
            ]
            total.append(
                sum(
                    step[token - 3] - step.exp().sum().log()
                    for step, token in zip(steps, caption, strict=True)
                )
            )
        return torch.stack(total)


REWARDS = torch.randn(len(CAPTIONS), generator=torch.Generator().manual_seed(9)) * 2 - 1


def _gradient(value: Any, language: _Language) -> Any:
    (gradient,) = torch.autograd.grad(value, language.table)
    return gradient


def _exact(language: _Language, temperature: float = 1.0) -> Any:
    """Minus the gradient of the expected reward."""
    return _gradient(-(language.logprobs(temperature).exp() * REWARDS).sum(), language)


def test_probabilities_of_all_captions_sum_to_one() -> None:
    language = _Language(0)
    assert len(CAPTIONS) == 1 + 3 + 9 + 27
    for temperature in (1.0, 0.3):
        assert float(language.logprobs(temperature).exp().sum().detach()) == pytest.approx(1.0, abs=1e-5)
        logits, labels = language.logits(CAPTIONS)
        ours = token_logprobs(policy_logprobs(logits, temperature), labels).sum(1)
        torch.testing.assert_close(ours, language.logprobs(temperature), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("baseline", ["none", "running_mean", "greedy"])
def test_the_expected_gradient_is_exact_with_a_baseline_that_knows_nothing_of_the_caption(
    baseline: str, temperature: float
) -> None:
    language = _Language(1)
    running = RunningMean()
    running.update(torch.tensor([1.5, 0.5]))
    expected = torch.zeros_like(language.table)
    for index, probability in enumerate(language.logprobs(temperature).exp().detach()):
        logits, labels = language.logits([CAPTIONS[index]])
        logprobs = token_logprobs(policy_logprobs(logits, temperature), labels)
        once = RunningMean()
        once.restore(running.facts())
        advantages = advantages_of(
            REWARDS[index : index + 1], samples=1, baseline=baseline, running=once,
            greedy=torch.tensor([0.7]),
        )  # fmt: skip
        assert float(advantages) == pytest.approx(
            float(REWARDS[index]) - {"none": 0.0, "running_mean": 1.0, "greedy": 0.7}[baseline], abs=1e-6
        )
        expected += probability * _gradient(
            reinforce_loss(logprobs, labels, advantages, "captions"), language
        )
    torch.testing.assert_close(expected, _exact(language, temperature), rtol=1e-3, atol=1e-5)


def test_the_expected_gradient_is_exact_with_the_mean_of_the_other_sample() -> None:
    language = _Language(2)
    probabilities = language.logprobs().exp().detach()
    pairs = list(itertools.product(range(len(CAPTIONS)), repeat=2))
    # The loss is linear in the log-probabilities, so the expectation over pairs is one weighted sum.
    logits, labels = language.logits(CAPTIONS)
    sums = token_logprobs(policy_logprobs(logits, 1.0), labels).sum(1)
    loss = torch.zeros(())
    for one, other in pairs:
        advantages = advantages_of(
            REWARDS[[one, other]], samples=2, baseline="leave_one_out", running=RunningMean()
        )
        weight = probabilities[one] * probabilities[other]
        loss = loss - weight * (advantages * sums[[one, other]]).mean()
    torch.testing.assert_close(_gradient(loss, language), _exact(language), rtol=1e-3, atol=1e-5)
    # ... which is what the trainer computes for one pair.
    pair = [CAPTIONS[5], CAPTIONS[30]]
    logits, labels = language.logits(pair)
    logprobs = token_logprobs(policy_logprobs(logits, 1.0), labels)
    found = reinforce_loss(logprobs, labels, torch.tensor([2.0, -2.0]), "captions")
    assert float(found.detach()) == pytest.approx(float(-(2 * sums[5] - 2 * sums[30]).detach() / 2), rel=1e-5)


def test_a_wrong_estimator_would_be_found_out() -> None:
    """Length-normalised, as the paper has it, the estimate is not the gradient of the expected reward."""
    language = _Language(1)
    expected = torch.zeros_like(language.table)
    for index, probability in enumerate(language.logprobs().exp().detach()):
        logits, labels = language.logits([CAPTIONS[index]])
        logprobs = token_logprobs(policy_logprobs(logits, 1.0), labels)
        expected += probability * _gradient(
            reinforce_loss(logprobs, labels, REWARDS[index : index + 1], "length"), language
        )
    assert float((expected - _exact(language)).abs().max()) > 0.01


def test_what_each_average_divides_by() -> None:
    labels = torch.tensor([[4, END_ID, IGNORED], [4, 5, END_ID]])
    values = torch.tensor([[-1.0, -3.0, 0.0], [-2.0, -2.0, -5.0]])
    assert float(batch_average(values, labels, "tokens")) == pytest.approx(-13 / 5)
    assert float(batch_average(values, labels, "length")) == pytest.approx((-2 - 3) / 2)
    assert float(batch_average(values, labels, "captions")) == pytest.approx((-4 - 9) / 2)


def test_the_paper_s_loss_by_hand() -> None:
    """Method 4.2: mean over captions of (l - b) times the mean log-probability at T = 0.3."""
    logits = torch.zeros(1, 2, VOCABULARY)
    logits[0, 0, 4], logits[0, 1, END_ID] = 0.3, 0.6
    labels = torch.tensor([[4, END_ID]])
    first = 1 - math.log(math.e + 3)  # 0.3 / 0.3 = 1 among four drawable tokens
    second = 2 - math.log(math.e**2 + 3)
    logprobs = token_logprobs(policy_logprobs(logits, 0.3), labels)
    assert logprobs[0].tolist() == pytest.approx([first, second], rel=1e-5)
    cost, baseline = 2.5, 4.0
    found = reinforce_loss(logprobs, labels, torch.tensor([-cost - -baseline]), "length")
    assert float(found) == pytest.approx((cost - baseline) * (first + second) / 2, rel=1e-5)


def test_gradient_makes_the_better_caption_likelier() -> None:
    logits = torch.zeros(2, 1, VOCABULARY, requires_grad=True)
    labels = torch.tensor([[4], [5]])
    logprobs = token_logprobs(policy_logprobs(logits, 1.0), labels)
    (reinforce_loss(logprobs, labels, torch.tensor([2.0, -1.0]), "tokens") * 2).backward()
    # d/dlogit of -A log softmax is A (p - onehot), with p = 1/4 for tokens that can be drawn.
    torch.testing.assert_close(logits.grad[0, 0, 3:], torch.tensor([0.5, -1.5, 0.5, 0.5]))
    torch.testing.assert_close(logits.grad[1, 0, 3:], torch.tensor([-0.25, -0.25, 0.75, -0.25]))
    assert logits.grad[:, :, :3].abs().max() == 0.0


def test_tokens_behind_the_end_do_not_count() -> None:
    logits = torch.zeros(1, 3, VOCABULARY, requires_grad=True)
    labels = torch.tensor([[4, END_ID, PAD_ID]]).masked_fill(torch.tensor([[False, False, True]]), IGNORED)
    logprobs = token_logprobs(policy_logprobs(logits, 1.0), labels)
    reinforce_loss(logprobs, labels, torch.tensor([1.0]), "tokens").backward()
    assert torch.isfinite(logits.grad).all()
    assert float(logits.grad[0, 2].abs().sum()) == 0.0
    assert float(logits.grad[0, 1].abs().sum()) > 0.0


def test_divergence_is_exact_over_whole_captions() -> None:
    """By the chain rule, the divergence over captions is the expected sum of those over tokens."""
    ours, theirs = _Language(3), _Language(4)
    logits, labels = ours.logits(CAPTIONS)
    policy = policy_logprobs(logits, 1.0)
    reference = policy_logprobs(theirs.logits(CAPTIONS)[0], 1.0).detach()
    nats = kl_divergence(policy, reference, labels)
    expected = (ours.logprobs().exp() * (ours.logprobs() - theirs.logprobs())).sum()
    found = (ours.logprobs().exp() * nats.sum(1)).sum()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert float(expected.detach()) > 0.1
    assert float(nats.detach().min()) >= 0.0
    same = kl_divergence(policy, policy.detach(), labels)
    assert float(same.detach().abs().max()) == 0.0
    nats.sum().backward()
    assert torch.isfinite(ours.table.grad).all()


def test_running_mean_is_used_before_it_is_updated() -> None:
    """Method 4.2: batch means 4, 3, 2 give baselines 0, 4, 3.5, and 3 afterwards."""
    running, seen = RunningMean(), []
    for mean in (4.0, 3.0, 2.0):
        rewards = torch.tensor([mean - 1, mean + 1])
        advantages = advantages_of(rewards, samples=1, baseline="running_mean", running=running)
        seen.append(float((rewards - advantages).mean()))
    assert [*seen, running.value] == [0.0, 4.0, 3.5, 3.0]
    again = RunningMean()
    again.restore(running.facts())
    assert again.value == 3.0


def test_running_mean_forgets_at_a_new_level_only_where_asked() -> None:
    for reset, after in ((False, 4.0), (True, 0.0)):
        running = RunningMean(reset_at_levels=reset)
        running.enter(0)
        running.update(torch.tensor([4.0]))
        running.enter(0)
        assert running.value == 4.0
        running.enter(1)
        assert running.value == after


def test_advantage_is_what_exceeds_the_mean_of_the_others() -> None:
    found = leave_one_out_advantage(torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert found.tolist() == [[3.0, -1.5, -1.5], [0.0, 0.0, 0.0]]


def test_greedy_baseline_belongs_to_the_image_of_the_samples() -> None:
    rewards, greedy = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.0, 4.0])
    found = advantages_of(rewards, samples=2, baseline="greedy", running=RunningMean(), greedy=greedy)
    assert found.tolist() == [0.0, 1.0, -1.0, 1.0]
