"""One checkpoint out of several: the mean of their weights.

Runs that start from one checkpoint and end in different places of one basin average into a network that is
often better than each, most of all on images unlike the training set (Wortsman et al. 2022, "model soups";
with rewards, Rame et al. 2023). It costs nothing on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tellapart.errors import CheckpointError, UsageError
from tellapart_training.pair import open_pair


def average_checkpoints(checkpoints: Sequence[Path], out: Path) -> Path:
    """Write the mean of checkpoints of the compact pair.

    Args:
        checkpoints: two or more, of one architecture and vocabulary; one that is named twice counts twice.
        out: checkpoint folder to write.

    Returns:
        The folder.

    Raises:
        UsageError: fewer than two checkpoints, or `out` exists.
        CheckpointError: one cannot be opened, or differs in architecture or vocabulary.
    """
    if len(checkpoints) < 2:
        raise UsageError(f"an average needs at least two checkpoints, got {len(checkpoints)}")
    if out.exists():
        raise UsageError(f"{out} exists already: delete it, or write elsewhere")
    first = open_pair(checkpoints[0])
    sums = {name: tensor.double() for name, tensor in first.network.state_dict().items()}
    hashes = [first.sha256]
    for path in checkpoints[1:]:
        pair = open_pair(path)
        if (pair.config, list(pair.vocabulary)) != (first.config, list(first.vocabulary)):
            raise CheckpointError(
                f"{path} and {checkpoints[0]} differ in architecture or vocabulary: only runs of one "
                "network, best from one start, can be averaged"
            )
        for name, tensor in pair.network.state_dict().items():
            sums[name] += tensor.double()
        hashes.append(pair.sha256)
    means = {name: tensor / len(checkpoints) for name, tensor in sums.items()}
    state = {
        name: means[name].to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in first.network.state_dict().items()
    }
    with torch.no_grad():
        first.network.load_state_dict(state)
    first.save(out, {"stage": "average", "average_of": hashes})
    return out
