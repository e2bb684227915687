"""Features of a trunk that does not learn: a few augmented views of each image, kept on disk.

The trunk is a function from pixels to features. It may be the checkpoint's own or a graph that stands for
it, such as the INT8 trunk that will ship, so that the heads learn to read exactly what they will be given.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.bundle import open_bundle
from tellapart.errors import ConfigError, DataError
from tellapart_training.augment import Truths, augment, keyed_generator
from tellapart_training.config import AugmentConfig

FeatureArray = npt.NDArray[np.float16]
PixelArray = npt.NDArray[np.uint8]
Encoder = Callable[[PixelArray], npt.NDArray[np.float32]]
"""(b, s, s, 3) uint8 -> (b, N, C) float32."""


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A trunk that does not learn.

    Attributes:
        encode: pixels to features.
        identity: changes when its features would.
    """

    encode: Encoder
    identity: str


FEATURES = "features"
"""Name of the trunk's last tensor in every vision graph that `tellapart export` writes."""


def onnx_trunk(path: Path) -> Trunk:
    """A trunk from the vision graph of a device bundle, or from an .onnx file.

    The graph takes `pixels` and has a tensor `features` inside; what lies behind it is left out.

    Raises:
        ConfigError: absent, not such a graph, or a package that reads it is not installed.
        BundleError: the bundle is damaged.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError('features_from needs onnx: pip install "tellapart[train,export]"') from error
    try:
        data = path.read_bytes() if path.suffix == ".onnx" else _vision_graph(path)
    except OSError as error:
        raise ConfigError(
            f"features_from {path}: {error.strerror}; give a bundle or an .onnx file"
        ) from error
    try:
        model = onnx.load_model_from_string(data)
        # onnxruntime drops what does not lead to an output, so naming another one cuts the heads off.
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(FEATURES, 1, ["batch", None, None]))
        # Images do not wait for one another, layers do: a thread an image is quicker than all threads on one.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # both packages raise classes of their own for what they cannot read
        raise ConfigError(
            f"features_from {path} has no graph from 'pixels' to {FEATURES!r} that can be run: {error}"
        ) from error

    if [each.name for each in session.get_inputs()] != ["pixels"]:
        raise ConfigError(f"features_from {path} must take 'pixels' alone, as a vision graph does")

    def one(image: PixelArray) -> npt.NDArray[np.float32]:
        return np.asarray(session.run([FEATURES], {"pixels": image[None]})[0], dtype=np.float32)

    def encode(pixels: PixelArray) -> npt.NDArray[np.float32]:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return np.concatenate(list(pool.map(one, pixels)))

    return Trunk(encode, hashlib.sha256(data).hexdigest())


def _vision_graph(path: Path) -> bytes:
    with open_bundle(path) as bundle:
        return bundle.read_bytes(bundle.graph("vision").file)


def feature_cache(
    trunk: Trunk,
    pixels: PixelArray,
    truths: Sequence[Truths],
    *,
    pixels_identity: str,
    views: int,
    config: AugmentConfig,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    batch_size: int = 32,
) -> FeatureArray:
    """Features of every image, made on the first call and read back on later ones.

    Args:
        trunk: pixels to features.
        pixels: (n, s, s, 3) uint8.
        truths: one for each image.
        pixels_identity: changes when the pixels do.
        views: per image; view 0 is the image as it is, the others are augmented.
        config: of the augmentation.
        seed: of the augmentation.
        folder: of cache files.
        say: receives progress lines.
        batch_size: images encoded at once.

    Returns:
        (n, views, N, C) float16 memory map, read-only.
    """
    drawn = [seed, dataclasses.asdict(config), [list(truth) for truth in truths]] if views > 1 else []
    rule = [trunk.identity, pixels_identity, views, len(pixels), drawn]
    key = hashlib.sha256(json.dumps(rule).encode()).hexdigest()[:20]
    path = folder / f"features-{key}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f"features-{key}.{os.getpid()}.tmp"
        try:
            _encode_all(trunk, pixels, truths, views, config, seed, scratch, say, batch_size)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    stored: FeatureArray = np.load(path, mmap_mode="r", allow_pickle=False)
    if stored.shape[:2] != (len(pixels), views):
        raise DataError(f"cache {path} holds {stored.shape}: delete it and start again")
    return stored


def _encode_all(
    trunk: Trunk,
    pixels: PixelArray,
    truths: Sequence[Truths],
    views: int,
    config: AugmentConfig,
    seed: int,
    scratch: Path,
    say: Callable[[str], None],
    batch_size: int,
) -> None:
    stored: Any = None
    for start in range(0, len(pixels), batch_size):
        rows = range(start, min(start + batch_size, len(pixels)))
        batch = torch.from_numpy(np.array(pixels[start : rows.stop]))
        for view in range(views):
            seen = batch
            if view:
                keys = [keyed_generator(seed, "view", view, row) for row in rows]
                seen = augment(batch, config, [truths[row] for row in rows], keys)
            features = trunk.encode(seen.numpy())
            if stored is None:
                shape = (len(pixels), views, *features.shape[1:])
                stored = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                    scratch, mode="w+", dtype=np.float16, shape=shape
                )
            stored[start : rows.stop, view] = features
        if start // 1024 != rows.stop // 1024:
            say(f"features of {rows.stop} of {len(pixels)} images x {views} views")
    stored.flush()
