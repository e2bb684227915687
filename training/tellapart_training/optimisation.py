"""What is trained and how fast: parts, learning rate, weight decay, and the average of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn

from tellapart.errors import ConfigError
from tellapart_training.config import PARTS, OptimizerConfig
from tellapart_training.state import copy_tensors

_OTHER_NAMES = {"vision": "trunk", "language": "decoder"}  # of ClipCap's parts; its mapper is `heads`


def part_of(name: str) -> str:
    """The part a parameter belongs to: `trunk`, `decoder`, `text` or `heads` (everything else)."""
    first = name.split(".")[0].removeprefix("_")
    first = _OTHER_NAMES.get(first, first)
    for part in PARTS:
        if first == part or first.startswith(part + "_"):
            return part
    return "heads"


def lr_share(step: int, total: int, config: OptimizerConfig) -> float:
    """The share of `lr` used in a step: a linear rise, then a cosine down to `final_lr_share`.

    Args:
        step: optimizer steps done before this one.
        total: of the whole run.
        config: shares.
    """
    rise = math.ceil(config.warmup_share * total)
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, total - rise)
    return config.final_lr_share + (1 - config.final_lr_share) * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; parts with multiplier 0 are frozen on the way.

    Weight decay acts on matrices only. Parameters that already need no gradient stay out.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        part = part_of(name)
        if getattr(config.lr_multipliers, part) == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            groups.setdefault((part, parameter.ndim >= 2), []).append(parameter)
    if not groups:
        raise ConfigError(
            "nothing is trained: every optimizer.lr_multipliers is 0 or belongs to another stage"
        )
    described = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "multiplier": getattr(config.lr_multipliers, part),
        }
        for (part, decayed), parameters in groups.items()
    ]
    first, second = config.betas
    return torch.optim.AdamW(described, lr=config.lr, betas=(first, second), fused=True)


class WeightAverage:
    """An exponential moving average of the trained parameters, with a young average that follows faster."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: each for name, each in network.named_parameters() if each.requires_grad}
        self.averages = {name: each.detach().clone() for name, each in self.live.items()} if decay else {}

    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        if self.decay:
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(
                list(self.averages.values()), [each.detach() for each in self.live.values()], weight
            )

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The network holds the average inside the block, the live weights again after it."""
        if not self.decay:
            yield
            return
        kept = {name: each.detach().clone() for name, each in self.live.items()}
        copy_tensors(self.averages, self.live, "average")
        try:
            yield
        finally:
            copy_tensors(kept, self.live, "weights")


def set_training(network: nn.Module) -> None:
    """Training mode, except batch norms: their statistics stay those of the pretrained trunk."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
