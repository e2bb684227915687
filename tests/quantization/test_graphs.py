"""Quantizers on graphs made by hand: a trunk of two convolutions, a tied word table. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tellapart.errors import DataError, UsageError  # noqa: E402
from tellapart_quantization.calibration import Histogram, find_ranges, open_model  # noqa: E402
from tellapart_quantization.features import model_features  # noqa: E402
from tellapart_quantization.int8_onnx import (  # noqa: E402
    TrunkForm,
    quantize_trunk,
    trunk_blocks,
    trunk_tensors,
)
from tellapart_quantization.sensitivity import choose_float_blocks, scan_blocks  # noqa: E402
from tellapart_quantization.surgery import ancestors, cut  # noqa: E402
from tellapart_quantization.weights_onnx import quantize_weights, to_blocks  # noqa: E402

pytestmark = pytest.mark.train


def build(nodes: list[Any], inputs: list[Any], outputs: list[Any], **arrays: np.ndarray) -> Any:
    tensors = [numpy_helper.from_array(array, name.replace("__", ".")) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def trunk() -> Any:
    """Pixels (b, 8, 8, 3) -> features (b, 16, 8) -> rows (b, 16, 4)."""
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["turned"], name="turn", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["turned"], ["cast"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["cast", "mean"], ["centred"], name="sub"),
        helper.make_node("Div", ["centred", "std"], ["scaled"], name="div"),
        helper.make_node(
            "Conv", ["scaled", "trunk.stem.0.weight"], ["a"], name="conv0", strides=[2, 2], pads=[0, 0, 1, 1]
        ),
        helper.make_node("Clip", ["a", "low", "high"], ["b"], name="clip0"),
        helper.make_node("Conv", ["b", "trunk.blocks.0.weight"], ["c"], name="conv1"),
        helper.make_node("Add", ["b", "c"], ["d"], name="add1"),
        helper.make_node("Conv", ["d", "trunk.head.0.weight"], ["e"], name="conv2"),
        helper.make_node("Clip", ["e", "low", "high"], ["f"], name="clip2"),
        helper.make_node("Reshape", ["f", "shape"], ["flat"], name="reshape"),
        helper.make_node("Transpose", ["flat"], ["features"], name="tokens", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["features", "heads.weight"], ["rows"], name="head"),
    ]
    weights = {
        "trunk__stem__0__weight": draw.normal(size=(8, 3, 3, 3)),
        "trunk__blocks__0__weight": draw.normal(size=(8, 8, 1, 1)),
        "trunk__head__0__weight": draw.normal(size=(8, 8, 1, 1)) / 3,
        "heads__weight": draw.normal(size=(8, 4)),
        "mean": np.array(127.0),
        "std": np.array(128.0),
        "low": np.array(0.0),
        "high": np.array(6.0),
    }
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    return build(
        nodes,
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 16, 4])],
        shape=np.array([0, 8, 16], np.int64),
        **arrays,
    )


def photos(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def ranges(model: Any, *, percentile: float = 99.999) -> dict[str, tuple[float, float]]:
    feeds: Iterator[dict[str, Any]] = ({"pixels": photos(4, seed)} for seed in range(5))
    return find_ranges(model, trunk_tensors(model), feeds, percentile=percentile)


def test_blocks_follow_the_weights_up_to_the_features() -> None:
    assert trunk_blocks(trunk()) == {
        "stem": ["conv0", "clip0"],
        "blocks.0": ["conv1", "add1"],
        "head": ["conv2", "clip2"],
    }
    with pytest.raises(UsageError, match="features"):
        trunk_blocks(cut(trunk(), ["d"]))


def test_the_trunk_computes_in_8_bits_and_stays_close() -> None:
    model = trunk()
    # Weights of seven bits: with eight, sums overflow on processors without 8-bit dot products.
    quantized = quantize_trunk(model, ranges(model), form=TrunkForm(reduce_range=True))
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("Clip") == 0  # both went into the rounding
    assert kinds.count("QuantizeLinear") >= 4
    weights = {tensor.name: tensor.data_type for tensor in quantized.graph.initializer}
    assert weights["trunk.stem.0.weight_quantized"] == TensorProto.INT8
    assert weights["heads.weight"] == TensorProto.FLOAT
    pixels = photos(6, 99)
    wanted, given = model_features(model)(pixels), model_features(quantized)(pixels)
    error = np.linalg.norm(given - wanted) / np.linalg.norm(wanted)
    assert 0 < error < 0.03
    # 8 bits: at most 256 levels come out, and they are those of the last convolution.
    assert len(np.unique(given)) <= 256


def test_a_block_in_float_is_left_alone() -> None:
    model, found = trunk(), ranges(trunk())
    mixed = quantize_trunk(model, found, keep_float=["stem"])
    names = {tensor.name for tensor in mixed.graph.initializer}
    assert "trunk.stem.0.weight" in names
    assert "trunk.head.0.weight" not in names
    untouched = quantize_trunk(model, found, keep_float=["stem", "blocks.0", "head"])
    assert untouched == model
    with pytest.raises(UsageError, match=r"no block 'blocks\.7'"):
        quantize_trunk(model, found, keep_float=["blocks.7"])


def test_the_same_photos_give_the_same_trunk_under_other_heads() -> None:
    model, other = trunk(), trunk()
    head = next(tensor for tensor in other.graph.initializer if tensor.name == "heads.weight")
    head.CopyFrom(numpy_helper.from_array(np.ones((8, 4), np.float32), "heads.weight"))
    ours, theirs = (quantize_trunk(graph, ranges(graph)) for graph in (model, other))
    assert np.array_equal(model_features(ours)(photos(3)), model_features(theirs)(photos(3)))
    assert cut(ours, ["features"]) == cut(theirs, ["features"])


def test_the_scan_finds_the_block_that_hurts() -> None:
    model = trunk()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "trunk.blocks.0.weight")
    rows = numpy_helper.to_array(weight).copy()
    rows[0] *= 300  # one huge channel: the others share its range
    rows[1:] /= 30
    weight.CopyFrom(numpy_helper.from_array(rows, weight.name))
    found = ranges(model)
    scan = scan_blocks(model, found, photos(4, 50))
    assert [row.block for row in scan] == ["", "stem", "blocks.0", "head"]
    assert (
        min(scan, key=lambda row: row.error).block
        == choose_float_blocks(model, found, photos(4, 50), most=1)[0]
    )


def test_histograms_grow_without_losing_counts() -> None:
    histogram, draw = Histogram(), np.random.default_rng(0)
    values = [draw.normal(size=1000).astype(np.float32) * scale for scale in (0.1, 3, 1, 20)]
    for part in values:
        histogram.add(part)
    joined = np.concatenate(values)
    assert histogram.counts.sum() == len(joined)
    assert histogram.percentile_range(100) == (float(joined.min()), float(joined.max()))
    low, high = histogram.percentile_range(99)
    width = 2 * histogram.edge / len(histogram.counts)
    # numpy's percentile of the values themselves is the independent source.
    assert low == pytest.approx(np.percentile(joined, 1), abs=2 * width)
    assert high == pytest.approx(np.percentile(joined, 99), abs=2 * width)


def test_positive_values_have_a_range_from_zero() -> None:
    histogram = Histogram()
    histogram.add(np.linspace(2, 5, 100, dtype=np.float32))
    assert histogram.percentile_range(99.9)[0] == 0.0
    histogram = Histogram()
    histogram.add(np.zeros(9, np.float32))
    assert histogram.percentile_range(99.9) == (0.0, 0.0)


def test_calibration_needs_photos_and_finite_values() -> None:
    with pytest.raises(DataError, match="at least one photo"):
        find_ranges(trunk(), ["b"], [], percentile=100)
    with pytest.raises(DataError, match="NaN"):
        Histogram().add(np.array([1, np.nan], np.float32))


def tied(vocabulary: int = 96, width: int = 32) -> Any:
    """Ids (b, 1) -> the row of a table, times itself -> (b, 1, vocabulary)."""
    table = np.random.default_rng(0).normal(size=(vocabulary, width)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["row"], name="lookup"),
        helper.make_node("Transpose", ["table"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["row", "turned"], ["product"], name="output"),
        helper.make_node("Reshape", ["product", "flat"], ["wide"], name="flatten"),
        helper.make_node("Gemm", ["wide", "out.weight", "out.bias"], ["logits"], name="gemm", transB=1),
    ]
    draw = np.random.default_rng(1)
    return build(
        nodes,
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 48])],
        table=table,
        flat=np.array([-1, vocabulary], np.int64),
        out__weight=draw.normal(size=(48, vocabulary)).astype(np.float32),
        out__bias=draw.normal(size=48).astype(np.float32),
    )


def test_a_tied_table_stays_one_tensor_and_close() -> None:
    model = tied()
    small = quantize_weights(model)
    assert [node.op_type for node in small.graph.node if node.domain] == [
        "GatherBlockQuantized",
        "MatMulNBits",
        "MatMulNBits",
    ]
    stored = {tensor.name: tensor.data_type for tensor in small.graph.initializer}
    assert stored["table::int8"] == TensorProto.UINT8
    assert sum(name.startswith("table") and name.endswith("int8") for name in stored) == 1
    assert small.ByteSize() < 0.5 * model.ByteSize()
    ids = np.arange(96)[:, None]
    wanted, given = (open_model(graph).run(None, {"ids": ids})[0] for graph in (model, small))
    assert np.linalg.norm(given - wanted) / np.linalg.norm(wanted) < 0.02


def test_a_looked_up_row_is_the_rounded_row() -> None:
    model = tied()
    small = quantize_weights(model)
    rows = open_model(cut(small, ["row"])).run(None, {"ids": np.arange(96)[:, None]})[0][:, 0]
    levels, scales = to_blocks(numpy_helper.to_array(model.graph.initializer[0]), 32)
    np.testing.assert_allclose(rows, (levels.astype(np.float32) - 128) * scales, rtol=1e-6)


def test_blocks_round_to_the_nearest_of_255_levels() -> None:
    rows = np.array([[0, 1.27, -1.27, 0.014], [0, 0, 0, 0], [1, 2, 3, 254]], np.float32)
    levels, scales = to_blocks(rows, 4)
    assert levels.tolist() == [
        [128, 255, 1, 129],
        [128] * 4,
        [128, 129, 130, 255],
    ]  # ties go to even: 0.5 -> 0
    np.testing.assert_allclose(scales[:, 0], [0.01, 1, 2], rtol=1e-6)


def test_only_the_named_nodes_change() -> None:
    model = tied()
    assert quantize_weights(model, only=[]).graph.node == model.graph.node
    part = quantize_weights(model, only=["gemm"])
    assert [node.name for node in part.graph.node if node.op_type == "MatMulNBits"] == ["gemm"]
    assert ancestors(part, ["row"]) == {"lookup"}
