"""The checkpoint that training starts from: a vocabulary learnt from captions, weights that packages carry.

`tellapart train init` writes it: the trunk knows ImageNet, the text tower is cut from all-MiniLM-L6-v2, the
decoder has MiniLM's word vectors and nothing else.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from tellapart.errors import ConfigError
from tellapart.manifest import Vocabulary
from tellapart.tokenizer import Tokenizer
from tellapart_model.checkpoint import save_checkpoint
from tellapart_model.compact import CompactPair
from tellapart_model.config import load_config
from tellapart_model.pretrained import choose_vocabulary, load_minilm, load_trunk, minilm_folder
from tellapart_training.config import InitConfig
from tellapart_training.images import say_on_stderr
from tellapart_training.texts import load_texts


def initialise(config: InitConfig) -> Path:
    """Write the first checkpoint to `config.run`.

    Args:
        config: texts, architecture file (`vocabulary_size` in it is replaced by what was learnt) and
            `min_count`.

    Returns:
        The checkpoint folder.

    Raises:
        ConfigError: the folder exists already.
        MissingExtraError: a package with starting weights is not installed.
        DataError: captions that cannot be used.
    """
    target = Path(config.run)
    if target.exists():
        raise ConfigError(f"{target} exists already: delete it to start anew, or keep it as it is")
    torch.manual_seed(config.seed)
    texts, _ = load_texts(config.data, seed=config.data.seed)
    lines = (minilm_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    original = Tokenizer.from_lines(lines, Vocabulary())
    pieces = [piece for text in texts for piece in original.pieces(text)]
    vocabulary = choose_vocabulary(pieces, min_count=config.min_count)
    architecture = dataclasses.replace(load_config(config.model), vocabulary_size=len(vocabulary))
    network = CompactPair(architecture)
    load_trunk(network.trunk, architecture.trunk)
    load_minilm(network, vocabulary)
    facts = {"stage": "init", "seed": config.seed, "min_count": config.min_count, "texts": len(texts)}
    save_checkpoint(target, network, vocabulary=vocabulary, extra=facts)
    count = sum(parameter.numel() for parameter in network.parameters())
    say_on_stderr(
        f"{target}: {len(vocabulary)} pieces from {len(texts)} texts, {count / 1e6:.1f} M parameters"
    )
    return target
