"""A ClipCap in training: GPT-2's words beside its weights, and a caption is one sentence up to its full stop.

The ids are those that `tellapart export` gives the device: GPT-2's, and one more behind them for the end
mark. The network itself has no such token; in training it stands in front of captions and fills rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tellapart.byte_pairs import BytePairTokenizer
from tellapart.errors import CheckpointError, VocabularyError
from tellapart.manifest import Vocabulary
from tellapart_model.captioner import Marks
from tellapart_model.clipcap import ClipCap, load_clipcap, save_clipcap, stop_token_ids
from tellapart_training.captioner import TrainedCaptioner
from tellapart_training.data import normalise_caption

WORDS = ("vocab.json", "merges.txt")
_MORE_WORDS = ("tokenizer.json", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
FACTS = "training.json"
_END = "<|end of caption|>"


@dataclasses.dataclass
class TrainedClipCap(TrainedCaptioner):
    """A ClipCap and its words.

    Attributes:
        network: image tower, mapper, GPT-2.
        words: files of GPT-2's words by name, which every checkpoint carries on.
    """

    network: ClipCap
    words: Mapping[str, bytes]

    def encode(self, caption: str) -> list[int]:
        """Start mark, GPT-2's ids, and the full stop that ends a caption; see `TrainedCaptioner`."""
        stop = self.tokenizer.encode(".")[1:-1]
        ids = self.tokenizer.encode(f"{caption.rstrip(' .')}.")[1:-1]
        first = next((at for at, index in enumerate(ids) if index in self.marks.ends), len(ids))
        if first + 2 > self.max_tokens:
            return [self.marks.start, *ids[: self.max_tokens - 2], *stop]
        return [self.marks.start, *ids[: first + 1]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text as human captions are normalised, without its full stop."""
        return normalise_caption(self.tokenizer.decode(ids))

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write a folder that `tellapart export` takes, `training.json` with the facts in it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.words.items():
            (folder / name).write_bytes(content)
        page = {**facts, "init_sha256": self.sha256}
        (folder / FACTS).write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")
        save_clipcap(folder, self.network)


def open_clipcap(checkpoint: Path) -> TrainedClipCap:
    """Load a ClipCap for training.

    Raises:
        CheckpointError: not whole, weights that do not fit, or GPT-2's words are missing or not its own.
        ConfigError: a wrong configuration.
    """
    network = load_clipcap(checkpoint)
    config = network.config
    words = {
        name: (checkpoint / name).read_bytes()
        for name in (*WORDS, *_MORE_WORDS)
        if (checkpoint / name).is_file()
    }
    for name in WORDS:
        if name not in words:
            raise CheckpointError(
                f"{checkpoint}: {name} is missing; copy vocab.json and merges.txt of GPT-2 into the folder"
            )
    end, longest = config.vocabulary_size, config.max_length - config.prefix_length
    page = Vocabulary(
        kind="byte_bpe", merges="merges.txt", lowercase=False, pad=_END, unknown=_END, start=_END, end=_END,
        max_text_tokens=longest,
    )  # fmt: skip
    try:
        table: dict[str, int] = json.loads(words["vocab.json"])
        if sorted(table.values()) != list(range(end)):
            raise ValueError(f"it does not name ids 0 to {end - 1} once each, as the network has them")
        pieces = [*sorted(table, key=lambda piece: table[piece]), _END]
        tokenizer = BytePairTokenizer(pieces, page, words["merges.txt"].decode("utf-8").split("\n"))
    except (ValueError, TypeError, AttributeError, VocabularyError) as error:
        raise CheckpointError(
            f"{checkpoint}: vocab.json and merges.txt are not the words of its network ({error}); copy those "
            "of the GPT-2 that it was made of"
        ) from error
    return TrainedClipCap(
        network=network, tokenizer=tokenizer, preprocessing=config.preprocessing(),
        marks=Marks(start=end, pad=end, ends=stop_token_ids(table)), max_tokens=longest + 1,
        sha256=_identify(checkpoint), words=words,
    )  # fmt: skip


def _identify(checkpoint: Path) -> str:
    """Hash of hashes of configuration and weights, as the exporter names the same folder."""
    files = {}
    for name in ("config.json", "model.safetensors"):
        digest = hashlib.sha256()
        with (checkpoint / name).open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        files[name] = digest.hexdigest()
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode("utf-8")).hexdigest()
