"""A toy checkpoint and the bundle that it becomes, made once in a run, as an export takes seconds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest


@lru_cache(maxsize=1)
def make_checkpoint(base: Path) -> Path:
    """A compact pair at 32 px with random weights whose captions differ from picture to picture."""
    torch = pytest.importorskip("torch")
    from tellapart_model.checkpoint import save_checkpoint
    from tellapart_model.compact import CompactPair
    from tellapart_model.config import SPECIAL_PIECES, CompactConfig

    torch.manual_seed(5)
    pair = CompactPair(CompactConfig.toy(64)).eval()
    # Statistics of noise, so that the features of an untrained trunk neither vanish nor are all the same.
    norms = [module for module in pair.trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None
    with torch.no_grad():
        pair.features(torch.randint(0, 256, (32, 32, 32, 3), dtype=torch.uint8))
        # A tied output layer repeats its own input unless the layers between have more to say.
        for name, parameter in pair.decoder.named_parameters():
            if name.endswith(("_out.weight", "cross_query.weight")):
                parameter.mul_(12)
    pair.eval()
    letters = [chr(97 + index) for index in range(26)]
    pieces = [*SPECIAL_PIECES, *letters, *(f"##{letter}" for letter in letters), *"0123456789"][:64]
    folder = base / "toy-pair" / "checkpoint"
    save_checkpoint(folder, pair, vocabulary=pieces, extra={"recipe": "random"})
    return folder


@lru_cache(maxsize=1)
def make_bundle(base: Path) -> Path:
    """The float bundle of `make_checkpoint`."""
    pytest.importorskip("onnxscript")
    from tellapart_export.build import export_bundle

    checkpoint = make_checkpoint(base)
    export_bundle(checkpoint, checkpoint.parent / "bundle")
    return checkpoint.parent / "bundle"
