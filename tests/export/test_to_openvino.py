"""A toy pair exported for OpenVINO: the same numbers, alone and beside ONNX, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tellapart import Captioner, DecodeOptions, RuntimeOptions
from tellapart.backends import open_session
from tellapart.bundle import open_bundle
from tellapart.cli import main
from tellapart.errors import BackendError, MissingExtraError, ParityError, UsageError
from tellapart.manifest import TensorSpec
from tellapart_export.build import ExportOptions, export_bundle
from tellapart_export.prove_npu import main as prove_main

pytestmark = pytest.mark.train
SAMPLES = Path(__file__).parents[2] / "samples" / "photos"


@pytest.fixture(scope="module")
def alone(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy pair for OpenVINO and nothing else."""
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    out = tmp_path_factory.mktemp("openvino") / "bundle"
    export_bundle(toy_checkpoint, out, ExportOptions(targets=("openvino",), images=SAMPLES))
    return out


def test_openvino_alone_captions_as_onnx_does(alone: Path, toy_bundle: Path) -> None:
    photos = sorted(SAMPLES.iterdir())
    with Captioner.open(alone) as ours, Captioner.open(toy_bundle) as theirs:
        found = [ours.caption(photo) for photo in photos]
        assert [caption.token_ids for caption in found] == [theirs.caption(p).token_ids for p in photos]
        np.testing.assert_allclose(
            ours.retriever.embed_images(photos), theirs.retriever.embed_images(photos), atol=1e-5
        )
    with open_bundle(alone) as bundle:
        manifest = bundle.manifest
    assert manifest.targets == ("openvino",)
    assert set(manifest.files) == {
        *(f"{role}.{kind}" for role in ("vision", "decoder", "text") for kind in ("xml", "bin")),
        "MODEL_CARD.md",
        "REPORT.md",
        "vocab.txt",
    }
    assert manifest.parity["target"] == "openvino"
    assert manifest.parity["greedy_tokens_equal"] + manifest.parity["greedy_draws"] == len(photos)
    assert manifest.parity["max_logit_error"] < 1e-3
    assert main(["verify", str(alone), "--backend", "openvino"]) == 0


@pytest.fixture(scope="module")
def for_npu(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy pair for OpenVINO in fixed shapes, and nothing else."""
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    out = tmp_path_factory.mktemp("npu") / "bundle"
    export_bundle(toy_checkpoint, out, ExportOptions(targets=("openvino-npu",), images=SAMPLES, limit=4))
    return out


def test_fixed_shapes_caption_as_free_ones_do(for_npu: Path, toy_bundle: Path) -> None:
    with open_bundle(for_npu) as bundle:
        manifest = bundle.manifest
    graphs = {graph.role: graph for graph in manifest.graphs if graph.target == "openvino"}
    assert all(
        isinstance(axis, int)
        for graph in graphs.values()
        for tensor in (*graph.inputs, *graph.outputs)
        for axis in tensor.shape
    )
    shapes = {tensor.name: tensor.shape for tensor in graphs["decoder"].inputs}
    window = manifest.decoding.max_new_tokens + 1
    assert shapes["position"] == (1,)
    assert shapes["past_kv"][3] == window
    found = manifest.parity
    assert found["device"].startswith("unproved on device")
    assert found["device_command"] == "python -m tellapart_export.prove_npu BUNDLE"
    photos = sorted(SAMPLES.iterdir())
    assert found["greedy_tokens_equal"] == 4
    assert found["max_logit_error"] < 1e-3
    assert main(["verify", str(for_npu), "--backend", "openvino"]) == 0
    with Captioner.open(for_npu) as ours, Captioner.open(toy_bundle) as theirs:
        for options in (DecodeOptions(beams=1), DecodeOptions(beams=3)):
            said = [caption.token_ids for caption in ours.caption_many(photos, options=options, batch_size=2)]
            assert said == [theirs.caption(photo, options=options).token_ids for photo in photos]
        texts = ["a dog", "", "two of them, running"]
        np.testing.assert_allclose(
            ours.retriever.embed_texts(texts), theirs.retriever.embed_texts(texts), atol=1e-5
        )
        with pytest.raises(BackendError, match=rf"decoder\.xml has a window of {window} tokens"):
            ours.caption(photos[0], options=DecodeOptions(beams=1, max_new_tokens=40, min_new_tokens=40))


def test_the_command_for_an_npu(for_npu: Path, toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prove_main([str(for_npu), "--device", "CPU", "--rounds", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"vision.cross_kv", "vision.embedding", "decoder.logits", "decoder.present_kv",
                           "text.embedding"}  # fmt: skip
    assert all(entry["max_abs"] == 0 for entry in report.values())
    assert prove_main([str(toy_bundle)]) == 2
    assert "--target openvino-npu makes them" in capsys.readouterr().err
    assert prove_main([str(for_npu), "--device", "NOSUCH"]) == 1
    assert "NOSUCH was asked for" in capsys.readouterr().err


def test_an_npu_is_not_given_free_axes(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tellapart.backends.ov.choose_providers", lambda wanted: ("NPU",))
    with (
        open_bundle(alone) as bundle,
        pytest.raises(BackendError, match=r"decoder\.xml of .* has free axes.*--target openvino-npu"),
    ):
        open_session(bundle, "decoder", RuntimeOptions(backend="openvino", providers=("NPU",)))
    with pytest.raises(UsageError, match="free and with fixed shapes"):
        ExportOptions(targets=("openvino", "openvino-npu"))


def test_a_graph_that_is_not_its_page_is_found_out(toy_bundle: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from tellapart_export.to_openvino import read_graph

    with open_bundle(toy_bundle) as bundle:
        spec, file = bundle.graph("text"), bundle.path("text.onnx")
    read_graph(file, spec)
    wrong = (
        TensorSpec("embedding", "float32", ("batch", 7)),
        TensorSpec("row", "float32", spec.outputs[0].shape),
        TensorSpec("embedding", "float32", ("batch",)),
    )
    for output in wrong:
        with pytest.raises(ParityError, match="not its page"):
            read_graph(file, dataclasses.replace(spec, outputs=(output,)))


def test_without_its_package_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    options: Any = ExportOptions(targets=("onnx", "openvino"))
    with pytest.raises(MissingExtraError, match=r'pip install "tellapart\[openvino\]"'):
        export_bundle(tmp_path / "no-checkpoint", tmp_path / "out", options)
    arguments = ["export", str(tmp_path), "--out", str(tmp_path / "out"), "--target", "openvino"]
    assert main(arguments) == 2
    assert "tellapart[openvino]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="named twice"):
        ExportOptions(targets=("onnx", "onnx"))
