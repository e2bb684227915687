"""What a captioning run trains: a network, its words, its pixels, and the folder it is written to.

`pair` and `clipcap_captioner` are the two kinds; `open_captioner` finds out which one a folder holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tellapart.manifest import Preprocessing
from tellapart.tokenizer import Tokenizer
from tellapart_model.captioner import CaptionNetwork, Marks
from tellapart_model.generate import greedy, sample
from tellapart_training.optimisation import part_of
from tellapart_training.state import named_tensors


@dataclasses.dataclass
class TrainedCaptioner:
    """A captioner that can be drawn from and scored, and what is needed to feed it.

    Attributes:
        network: see `CaptionNetwork`.
        tokenizer: the device's own.
        preprocessing: the device's own rule for pixels.
        marks: ids that are no words.
        max_tokens: longest row of ids, start mark and end included.
        sha256: names the checkpoint in reports.
    """

    network: CaptionNetwork
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    marks: Marks
    max_tokens: int
    sha256: str

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption from the start mark to an end, cut to `max_tokens`."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids as metrics and scorers read it."""
        raise NotImplementedError

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write a checkpoint folder that names, besides `facts`, the one training started from."""
        raise NotImplementedError

    def greedy(self, condition: Tensor, max_new_tokens: int) -> Tensor:
        """See `generate.greedy`."""
        return greedy(self.network, condition, max_new_tokens=max_new_tokens, marks=self.marks)

    def sample(self, condition: Tensor, max_new_tokens: int, temperature: float) -> Tensor:
        """See `generate.sample`."""
        return sample(
            self.network, condition, max_new_tokens=max_new_tokens, temperature=temperature, marks=self.marks
        )

    def has_end(self, row: Iterable[int]) -> bool:
        """Whether a row came to an end, and was not cut."""
        return not self.marks.ends.isdisjoint(row)


def trunk_identity(captioner: TrainedCaptioner) -> str:
    """Hash of the trunk's weights and statistics: names the features it computes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(captioner.network).items()):
        if part_of(name) == "trunk":
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def open_captioner(checkpoint: Path) -> TrainedCaptioner:
    """Load a checkpoint for training: a ClipCap where its `config.json` says so, else the compact pair.

    Raises:
        CheckpointError: absent, damaged, or of another architecture.
    """
    if _architecture(checkpoint) == "clipcap":
        # Its libraries take seconds to import, which a run of the compact pair need not wait for.
        from tellapart_training.clipcap_captioner import open_clipcap

        return open_clipcap(checkpoint)
    from tellapart_training.pair import open_pair

    return open_pair(checkpoint)


def _architecture(checkpoint: Path) -> object:
    try:
        page = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # whose reader says what is wrong
    return page.get("architecture", "") if isinstance(page, dict) else ""
