"""A toy pair exported for OpenVINO: the same numbers, alone and beside ONNX, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tellapart import Captioner
from tellapart.bundle import open_bundle
from tellapart.cli import main
from tellapart.errors import MissingExtraError, ParityError, UsageError
from tellapart.manifest import TensorSpec
from tellapart_export.build import ExportOptions, export_bundle

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
