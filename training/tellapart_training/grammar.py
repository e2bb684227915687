"""A judge of sound text: the scorer's text tower under a small head that tells captions from broken ones.

After Cho et al. 2022 (method 9.3), text alone: the contrastive term that keeps their tower usable for
retrieval is left out, because ours is a copy that nothing else reads.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tellapart.errors import CheckpointError
from tellapart.manifest import Vocabulary
from tellapart.tokenizer import Tokenizer
from tellapart_model.compact import CompactPair
from tellapart_model.config import CompactConfig, from_mapping, to_json
from tellapart_model.retrieval_model import TextTower
from tellapart_training.batches import pad_ids
from tellapart_training.data import normalise_caption

MANIFEST = "grammar.json"
FILES = ("config.json", "model.safetensors", "vocab.txt")


class GrammarNetwork(nn.Module):
    """Token ids -> two logits: broken, sound."""

    def __init__(self, config: CompactConfig, tower: TextTower | None = None) -> None:
        """Build the judge.

        Args:
            config: of the pair whose tower is taken.
            tower: copied; None builds one with random weights.
        """
        super().__init__()
        self.config = config
        self.text = copy.deepcopy(tower) if tower is not None else TextTower(config)
        # The head reads the pooled feature before the projection, as in the original.
        self.text.out = nn.Identity()  # type: ignore[assignment]
        width = config.text_width
        self.head = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.ReLU(), nn.Linear(width, 2, bias=False)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """(b, t) int64 padded with 0 -> (b, 2) float."""
        # The tower gives rows of unit length; a layer starts well on entries of about one.
        logits: Tensor = self.head(self.text(ids) * math.sqrt(self.config.text_width))
        return logits


class GrammarJudge:
    """A trained network with its vocabulary.

    Attributes:
        sha256: of the checkpoint's manifest, its name in reports.
    """

    def __init__(
        self, network: GrammarNetwork, tokenizer: Tokenizer, *, sha256: str, device: torch.device
    ) -> None:
        self._network = network.eval().requires_grad_(False).to(device)
        self._tokenizer, self._device, self.sha256 = tokenizer, device, sha256

    @torch.no_grad()
    def probability(self, texts: Sequence[str]) -> Tensor:
        """How likely each text is sound, (b,) float32 from 0 to 1."""
        length = self._network.config.max_length
        ids = [list(self._tokenizer.encode(normalise_caption(text), length)) for text in texts]
        padded = pad_ids(ids, self._tokenizer.pad_id).to(self._device)
        logits: Tensor = self._network(padded)
        return logits.float().softmax(-1)[:, 1]


def grammar_of(pair: CompactPair) -> GrammarNetwork:
    """A judge that starts from a pair's text tower; the head is drawn by torch's generator."""
    return GrammarNetwork(pair.config, pair.text)


def save_grammar(folder: Path, network: GrammarNetwork, *, vocabulary: Sequence[str], facts: object) -> None:
    """Write a judge's folder, its manifest last.

    Args:
        folder: must not hold one yet.
        network: weights are written as float32.
        vocabulary: lines of vocab.txt.
        facts: JSON-ready, about the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(network.config), encoding="utf-8")
    state = {name: each.detach().cpu().float().contiguous() for name, each in network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in vocabulary), encoding="utf-8")
    files = {name: _sha256(folder / name) for name in FILES}
    text = json.dumps({"format_version": 1, "kind": "grammar", "files": files, "facts": facts}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def load_grammar(folder: Path, *, device: torch.device) -> GrammarJudge:
    """Open a judge.

    Raises:
        CheckpointError: absent, changed since it was written, or of other sizes than it says.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        files = json.loads(raw)["files"]
        for name in FILES:
            if files[name] != _sha256(folder / name):
                raise CheckpointError(f"{folder}: {name} is not the file that was saved; copy it anew")
        config = from_mapping(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        network = GrammarNetwork(config)
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} holds no whole grammar judge ({error}): give `last` or `best` of a "
            "`tellapart train grammar` run"
        ) from error
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer.from_lines(lines, Vocabulary(max_text_tokens=config.max_length))
    return GrammarJudge(network, tokenizer, sha256=hashlib.sha256(raw).hexdigest(), device=device)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
