from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tellapart.errors import ConfigError
from tellapart_training.augment import Truths
from tellapart_training.config import AugmentConfig
from tellapart_training.features import Trunk, feature_cache, onnx_trunk

pytestmark = pytest.mark.train

FREE = Truths(sides=False, colours=False)


def _cache(folder: Path, trunk: Trunk, pixels: Any, views: int, seed: int = 0) -> Any:
    return feature_cache(
        trunk, pixels, [FREE] * len(pixels), pixels_identity="p", views=views, config=AugmentConfig(),
        seed=seed, folder=folder, say=lambda _text: None, batch_size=2,
    )  # fmt: skip


def test_view_0_is_the_image_and_the_others_are_changed(
    tmp_path: Path, generator: np.random.Generator
) -> None:
    pixels = generator.integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    trunk = Trunk(lambda batch: batch.reshape(len(batch), 1, -1).astype(np.float32), "flat")
    features = _cache(tmp_path, trunk, pixels, views=3)
    assert features.shape == (5, 3, 1, 192)
    assert features.dtype == np.float16
    assert np.array_equal(features[:, 0, 0], pixels.reshape(5, -1))
    assert not np.array_equal(features[:, 1], features[:, 0])
    assert not np.array_equal(features[:, 2], features[:, 1])


def test_another_trunk_or_seed_is_another_file_and_one_view_needs_no_seed(
    tmp_path: Path, generator: np.random.Generator
) -> None:
    pixels = generator.integers(0, 255, (3, 4, 4, 3), dtype=np.uint8)
    calls = []

    def encode(batch: Any) -> Any:
        calls.append(len(batch))
        return batch.reshape(len(batch), 1, -1).astype(np.float32)

    for trunk, views, seed in (("a", 2, 0), ("a", 2, 0), ("b", 2, 0), ("b", 2, 1), ("a", 1, 0), ("a", 1, 1)):
        _cache(tmp_path, Trunk(encode, trunk), pixels, views, seed)
    assert len(list(tmp_path.glob("features-*.npy"))) == 4
    assert sum(calls) == 3 * (2 + 2 + 2 + 1)


def test_a_failing_trunk_leaves_no_file(tmp_path: Path) -> None:
    def fail(batch: Any) -> Any:
        raise RuntimeError("broken graph")

    with pytest.raises(RuntimeError):
        _cache(tmp_path, Trunk(fail, "x"), np.zeros((3, 4, 4, 3), np.uint8), 1)
    assert list(tmp_path.iterdir()) == []


def _graph(path: Path, output: str) -> None:
    import onnx
    from onnx import TensorProto, helper

    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", 4, 4, 3])
    features = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["b", 16, 3])
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [0, 16, 3])
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], [output]),
    ]
    graph = helper.make_graph(nodes, "g", [pixels], [features], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


def test_a_graph_stands_for_the_trunk(tmp_path: Path, generator: np.random.Generator) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pixels = generator.integers(0, 255, (2, 4, 4, 3), dtype=np.uint8)
    _graph(tmp_path / "trunk.onnx", "features")
    assert np.array_equal(onnx_trunk(tmp_path / "trunk.onnx").encode(pixels), pixels.reshape(2, 16, 3))
    _graph(tmp_path / "other.onnx", "tokens")
    with pytest.raises(ConfigError, match=r"no graph from 'pixels' to 'features'"):
        onnx_trunk(tmp_path / "other.onnx")
    with pytest.raises(ConfigError, match=r"absent\.onnx"):
        onnx_trunk(tmp_path / "absent.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"no graph")
    with pytest.raises(ConfigError, match="no graph from 'pixels'"):
        onnx_trunk(tmp_path / "noise.onnx")
