"""Bundles for OpenVINO in 8 bits: smaller, still the same words, and refused where they cannot be made."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from PIL import Image

from tellapart import Captioner
from tellapart.bundle import Bundle, open_bundle, staged_bundle, write_bundle
from tellapart.cli import main
from tellapart.errors import MissingExtraError, UsageError
from tellapart_quantization.build import QuantizeOptions, quantize_bundle
from tellapart_quantization.report import Budget

pytestmark = pytest.mark.train
SAMPLES = Path(__file__).parents[2] / "samples" / "photos"
OPTIONS = QuantizeOptions(
    images=SAMPLES,
    scheme="openvino",
    calibration_limit=6,
    check_images=6,
    budget=Budget(min_agreement=0.0, max_recall_drop=100.0),
)


@pytest.fixture(scope="module")
def int8(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nncf", reason="the extra nncf is not installed")
    base = tmp_path_factory.mktemp("openvino")
    quantize_bundle(toy_bundle, base / "bundle", dataclasses.replace(OPTIONS, images=draw(base / "photos")))
    return base / "bundle"


def draw(folder: Path, count: int = 16) -> Path:
    """Pictures of one kind, so that those compared on lie in the ranges of those calibrated on."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for index in range(count):
        base = noise.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(base).resize((32, 32)).save(folder / f"{index:02}.png")
    return folder


def test_the_bundle_is_small_and_runs(toy_bundle: Path, int8: Path) -> None:
    with open_bundle(toy_bundle) as before, open_bundle(int8) as after:
        manifest = after.manifest
        assert (manifest.precision, manifest.targets) == ("mixed", ("openvino",))
        assert manifest.scheme == "openvino, float: stem blocks.0 blocks.1 blocks.2 blocks.3"
        assert not any(name.endswith(".onnx") for name in manifest.files)
        for graph, own in zip(before.manifest.graphs, manifest.graphs, strict=True):
            assert (own.role, own.inputs, own.outputs) == (graph.role, graph.inputs, graph.outputs)
            before_bytes = before.manifest.files[graph.file].bytes
            assert manifest.files[own.file.replace(".xml", ".bin")].bytes < 0.5 * before_bytes
        report = manifest.metrics["quantization"]
        assert report["runtime"] == {"reference": "onnxruntime", "int8": "openvino"}
        assert report["calibrated_on"] == 6
        assert report["mean_image_cosine"] > 0.3  # random weights; unlike rows would be near 0
    with Captioner.open(int8) as captioner:
        assert captioner._engine.vision().session.backend == "openvino"
        said = [captioner.caption(path).token_ids for path in sorted(SAMPLES.iterdir())[:3]]
        assert all(said)


def test_the_trunk_computes_in_8_bits_but_for_its_first_blocks(int8: Path, toy_bundle: Path) -> None:
    from tellapart_quantization.int8_openvino import read_model

    def types(bundle: Path) -> list[str]:
        import openvino

        with open_bundle(bundle) as opened:
            model = openvino.Core().read_model(str(opened.path("vision.xml")))
        return [op.get_type_name() for op in model.get_ordered_ops()]

    with open_bundle(toy_bundle) as opened:
        blocks = read_model(opened.path("vision.onnx")).blocks
    assert list(blocks)[:3] == ["stem", "blocks.0", "blocks.1"]
    # What feeds each convolution outside the first blocks is rounded, or the activations were not quantized.
    convolutions = sum("Conv" in name for block in list(blocks)[5:] for name in blocks[block])
    assert convolutions > 3
    assert types(int8).count("FakeQuantize") >= convolutions / 2


def test_blocks_are_named_or_refused(toy_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="the extra nncf is not installed")
    for blocks, words in ((("blocks.99",), r"blocks\.99"), (("auto",), "name the blocks")):
        with pytest.raises(UsageError, match=words):
            quantize_bundle(toy_bundle, tmp_path / "out", dataclasses.replace(OPTIONS, keep_float=blocks))
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_both_sides_run_on_openvino_where_they_can(toy_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="the extra nncf is not installed")
    from tellapart_export.build import ExportOptions, export_bundle

    export_bundle(toy_checkpoint, tmp_path / "both", ExportOptions(targets=("onnx", "openvino")))
    manifest = quantize_bundle(tmp_path / "both", tmp_path / "int8", OPTIONS)
    runtime = manifest.metrics["quantization"]["runtime"]
    assert runtime == {"reference": "openvino", "int8": "openvino"}
    assert "vision.onnx" not in manifest.files


def test_without_onnx_graphs_there_is_nothing_to_make_it_of(toy_bundle: Path, tmp_path: Path) -> None:
    source: Bundle
    with open_bundle(toy_bundle) as source, staged_bundle(tmp_path / "other") as scratch:
        graphs = tuple(dataclasses.replace(graph, target="coreml") for graph in source.manifest.graphs)
        files: dict[str, Any] = {name: source.path(name) for name in source.manifest.files}
        write_bundle(scratch, dataclasses.replace(source.manifest, graphs=graphs), files)
    for scheme in ("openvino", "vnni"):
        with pytest.raises(UsageError, match="no ONNX graphs"):
            quantize_bundle(tmp_path / "other", tmp_path / "out", dataclasses.replace(OPTIONS, scheme=scheme))


def test_without_its_package_the_answer_is_the_install_command(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r'pip install "tellapart\[nncf\]"'):
        quantize_bundle(toy_bundle, tmp_path / "out", OPTIONS)
    command = ["quantize", str(toy_bundle), "--out", str(tmp_path / "out"), "--images", str(SAMPLES)]
    assert main([*command, "--scheme", "openvino"]) == 2
    assert "tellapart[nncf]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rows_stay_where_they_were(toy_bundle: Path, int8: Path) -> None:
    # Rounding moves numbers a little; a graph wired wrongly moves them anywhere.
    photos = sorted((int8.parent / "photos").iterdir())
    with Captioner.open(toy_bundle) as float_one, Captioner.open(int8) as small:
        rows = [one.retriever.embed_images(photos) for one in (float_one, small)]
        texts = [one.retriever.embed_texts(["a dog", "b c d", ""]) for one in (float_one, small)]
    # Random weights enlarge every rounding from layer to layer; unlike rows would be near 0.
    assert (rows[0] * rows[1]).sum(axis=1).mean() > 0.3
    assert (texts[0] * texts[1]).sum(axis=1).min() > 0.98
    assert not np.array_equal(texts[0], texts[1])
