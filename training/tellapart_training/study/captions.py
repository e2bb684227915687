"""Captions of every run of the study, from features computed once, kept as files to be scored again."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tellapart_training.augment import truths_of
from tellapart_training.captioning import captions_of
from tellapart_training.config import AugmentConfig
from tellapart_training.features import FeatureArray, feature_cache, onnx_trunk
from tellapart_training.images import ImageSource, pixel_cache, say_on_stderr
from tellapart_training.pair import open_pair
from tellapart_training.run_folder import write_atomically

BEAMS = 5


def features_of(
    source: ImageSource, names: Sequence[str], *, trunk: Path, start: Path, cache: Path
) -> FeatureArray:
    """Features of images as they are, (n, 1, N, C) float16, from the trunk that every run shares.

    Args:
        source: of the images.
        names: which images.
        trunk: bundle whose vision graph computes them.
        start: any checkpoint of the study, for its preprocessing.
        cache: folder of pixels and features.
    """
    preprocessing = open_pair(start).preprocessing
    pixels = pixel_cache(source, names, preprocessing, cache)
    identity = hashlib.sha256(f"{source.identity}{list(names)}{preprocessing}".encode()).hexdigest()
    return feature_cache(
        onnx_trunk(trunk), pixels, [truths_of([]) for _ in names], pixels_identity=identity, views=1,
        config=AugmentConfig(enabled=False), seed=0, folder=cache, say=say_on_stderr,
    )  # fmt: skip


def captions_for(
    checkpoint: Path, names: Sequence[str], features: FeatureArray, *, out: Path, batch_size: int = 50
) -> list[str]:
    """Captions of a checkpoint with beam search, read back from `out` where it wrote them before.

    Args:
        checkpoint: folder.
        names: of the images.
        features: see `features_of`.
        out: captions file, {image: caption}, with the checkpoint's hash beside it in `<out>.sha256`.
        batch_size: images at once.
    """
    pair = open_pair(checkpoint)
    stamp = out.with_name(out.name + ".sha256")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == pair.sha256:
        known = _written(out)
        if all(name in known for name in names):
            return [known[name] for name in names]
    pair.network.eval()
    captions: list[str] = []
    with torch.inference_mode():
        for first in range(0, len(names), batch_size):
            batch = torch.from_numpy(np.asarray(features[first : first + batch_size, 0], dtype=np.float32))
            captions += captions_of(pair, pair.network.cross_kv(batch), beams=BEAMS)
            print(f"\r{out.parent.name}: {len(captions)} of {len(names)} captions", end="", file=sys.stderr)
    print(file=sys.stderr)
    write_atomically(out, json.dumps(dict(zip(names, captions, strict=True)), indent=0) + "\n")
    write_atomically(stamp, pair.sha256)
    return captions


def _written(out: Path) -> dict[str, str]:
    """Captions of an earlier call; none where the file is absent or damaged, as they can be made again."""
    try:
        known = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
