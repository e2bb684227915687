"""The gradient of an expected reward from captions that were drawn: log-probabilities, baselines, divergence.

Axis letters: b captions, t token positions, V vocabulary, n images, s samples of each image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tellapart_model.captioner import COMPACT_MARKS, Marks
from tellapart_model.generate import forbid_specials
from tellapart_training.losses import IGNORED, process_count, sum_over_processes


def policy_logprobs(logits: Tensor, temperature: float, marks: Marks = COMPACT_MARKS) -> Tensor:
    """Log-probabilities of the distribution that captions are drawn from.

    Args:
        logits: (b, t, V) of any float type.
        temperature: as it was drawn with.
        marks: of the vocabulary.

    Returns:
        (b, t, V) float32; -inf at pieces that are never drawn (padding, unknown, start).
    """
    allowed = forbid_specials(logits.float(), marks)
    return (allowed if temperature == 1 else allowed / temperature).log_softmax(-1)


def token_logprobs(policy: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of every token drawn, (b, t) float32; 0 where `labels` is `IGNORED`.

    Args:
        policy: (b, t, V), see `policy_logprobs`.
        labels: (b, t) int64 tokens drawn, `IGNORED` behind the end piece.
    """
    real = labels != IGNORED
    chosen = policy.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    # Selected, not multiplied: padding is a piece that is never drawn, and 0 x -inf is no number.
    return torch.where(real, chosen, torch.zeros_like(chosen))


def batch_average(values: Tensor, labels: Tensor, normalise: str) -> Tensor:
    """One number for the batch from one for each token.

    Args:
        values: (b, t) float, 0 where `labels` is `IGNORED`.
        labels: (b, t) int64.
        normalise: `tokens`, over all tokens of the batch on all processes; `length`, the mean over each
            caption and then over captions (method 4.2); `captions`, the sum over each caption, then the mean,
            which for log-probabilities times advantages is the unbiased gradient of the expected reward.

    Returns:
        Scalar; with `tokens`, scaled so that the mean over processes is the number of the whole batch.
    """
    real = (labels != IGNORED).sum(1)
    if normalise == "tokens":
        return values.sum() * process_count() / sum_over_processes(real.sum())
    if normalise == "length":
        return (values.sum(1) / real).mean()
    return values.sum(1).mean()


def reinforce_loss(logprobs: Tensor, labels: Tensor, advantages: Tensor, normalise: str) -> Tensor:
    """Minus advantage times log-probability (Williams 1992), averaged as `batch_average` says.

    Args:
        logprobs: (b, t) float32, see `token_logprobs`.
        labels: (b, t) int64.
        advantages: (b,) float without gradient, higher is better.
        normalise: see `batch_average`.

    Returns:
        Scalar float32 to minimise.
    """
    return -batch_average(logprobs * advantages[:, None], labels, normalise)


def kl_divergence(policy: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """Divergence of the policy from a reference at every token drawn, exact over the vocabulary.

    Its sum over a caption, averaged over captions drawn, estimates the divergence of the two distributions
    over captions without bias. The gradient takes the words before each token as given.

    Args:
        policy: (b, t, V) log-probabilities, see `policy_logprobs`.
        reference: (b, t, V) likewise, without gradient.
        labels: (b, t) int64.

    Returns:
        (b, t) float32 nats, at least 0; 0 where `labels` is `IGNORED`.
    """
    possible = torch.isfinite(policy)
    gap = torch.where(possible, policy, 0.0) - torch.where(possible, reference, 0.0)
    nats = (policy.exp() * gap).sum(-1)
    return torch.where(labels != IGNORED, nats, torch.zeros_like(nats))


def leave_one_out_advantage(rewards: Tensor) -> Tensor:
    """Each reward less the mean reward of the other samples of its image (method 9.2).

    Args:
        rewards: (n, s) float, s >= 2 samples of each of n images.

    Returns:
        (n, s); every row sums to zero.
    """
    samples = rewards.shape[1]
    others = (rewards.sum(1, keepdim=True) - rewards) / (samples - 1)
    return rewards - others


class RunningMean:
    """The arithmetic mean of all past batch means, as it was before the batch at hand (method 4.2).

    Attributes:
        value: the baseline of the next batch; 0 before the first.
    """

    def __init__(self, *, reset_at_levels: bool = False) -> None:
        """Start at zero.

        Args:
            reset_at_levels: forget everything when the curriculum goes to another row.
        """
        self._reset, self._total, self._count, self._level = reset_at_levels, 0.0, 0, 0

    @property
    def value(self) -> float:
        """The mean so far."""
        return self._total / self._count if self._count else 0.0

    def enter(self, level: int) -> None:
        """Say which row of the curriculum the next batch belongs to."""
        if self._reset and level != self._level:
            self._total, self._count = 0.0, 0
        self._level = level

    def update(self, rewards: Tensor) -> None:
        """Take in the rewards of a batch, (b,), from every process."""
        mean = sum_over_processes(rewards.double().mean()) / process_count()
        self._total, self._count = self._total + float(mean), self._count + 1

    def facts(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"total": self._total, "count": self._count, "level": self._level}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take up what `facts` gave."""
        self._total, self._count = float(facts["total"]), int(facts["count"])
        self._level = int(facts["level"])


def advantages_of(
    rewards: Tensor, *, samples: int, baseline: str, running: RunningMean, greedy: Tensor | None = None
) -> Tensor:
    """What each caption earned beyond its baseline.

    Args:
        rewards: (b,) float32, the samples of an image in a row.
        samples: of each image.
        baseline: `leave_one_out`, `greedy`, `running_mean` or `none`.
        running: read, and then told of these rewards, where it is the baseline.
        greedy: (b / samples,) rewards of greedy captions, where they are the baseline.

    Returns:
        (b,) float32.
    """
    if baseline == "leave_one_out":
        return leave_one_out_advantage(rewards.view(-1, samples)).flatten()
    if baseline == "greedy":
        if greedy is None:
            raise ValueError("the baseline 'greedy' needs the rewards of greedy captions")
        return rewards - greedy.repeat_interleave(samples)
    if baseline == "running_mean":
        before = running.value
        running.update(rewards)
        return rewards - before
    return rewards
