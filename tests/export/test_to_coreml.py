"""Core ML packages: what the page says, the network's numbers, and what is refused; all without a Mac."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tellapart.bundle import open_bundle, staged_bundle, write_bundle  # noqa: E402
from tellapart.cli import main  # noqa: E402
from tellapart.errors import (  # noqa: E402
    BackendError,
    BundleError,
    BundleIntegrityError,
    ManifestError,
    MissingExtraError,
    ParityError,
)
from tellapart.manifest import GraphSpec, TensorSpec  # noqa: E402
from tellapart_coreml.package import WEIGHTS, load_model, read_package, save_package  # noqa: E402
from tellapart_coreml.prove import draw_feeds, prove_bundle  # noqa: E402
from tellapart_coreml.prove import main as prove_main  # noqa: E402
from tellapart_coreml.session import CoremlSession, check_program, open_coreml, run_elsewhere  # noqa: E402
from tellapart_export.build import ExportOptions, export_bundle  # noqa: E402
from tellapart_export.families import open_checkpoint  # noqa: E402
from tellapart_export.parity import check_graph, feeds_for  # noqa: E402
from tellapart_export.pictures import drawn_pictures  # noqa: E402
from tellapart_export.to_coreml import coreml_spec, write_coreml  # noqa: E402
from toy_families import (  # noqa: E402
    make_blip,
    make_clip,
    make_clipcap,
    make_git,
    make_siglip,
    make_smolvlm,
    make_vit_gpt2,
)

pytestmark = pytest.mark.train
SAMPLES = Path(__file__).parents[2] / "samples" / "photos"


@pytest.fixture(scope="module")
def made(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy pair for onnxruntime and for Core ML."""
    pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    out = tmp_path_factory.mktemp("coreml") / "bundle"
    export_bundle(toy_checkpoint, out, ExportOptions(targets=("onnx", "coreml"), images=SAMPLES))
    return out


def test_the_pages_have_fixed_shapes(made: Path) -> None:
    with open_bundle(made) as bundle:
        graphs = {graph.role: graph for graph in bundle.manifest.graphs if graph.target == "coreml"}
        window = bundle.manifest.decoding.max_new_tokens + 1
        tokens = bundle.manifest.vocabulary.max_text_tokens
    assert {role: graph.file for role, graph in graphs.items()} == {
        role: f"{role}.mlpackage" for role in ("vision", "decoder", "text")
    }
    pages = {
        role: [(tensor.name, tensor.dtype, tensor.shape) for tensor in (*graph.inputs, *graph.outputs)]
        for role, graph in graphs.items()
    }
    [_, past, cross] = [tensor.shape for tensor in graphs["decoder"].inputs if tensor.name != "position"]
    assert pages["vision"][0] == ("pixels", "uint8", (1, 32, 32, 3))
    assert pages["vision"][1] == ("cross_kv", "float16", cross)
    assert pages["decoder"][:2] == [("ids", "int32", (1, 1)), ("position", "int32", (1,))]
    assert past[1] == 1
    assert past[3] == window
    assert pages["decoder"][-1] == ("present_kv", "float16", past)  # goes in again as it came out
    assert pages["text"][0] == ("ids", "int32", (1, tokens))
    assert main(["verify", str(made)]) == 0


def test_the_conversion_is_exact_and_the_device_is_named(made: Path) -> None:
    with open_bundle(made) as bundle:
        parity = bundle.manifest.parity["coreml"]
    assert parity["device"].startswith("unproved on device")
    assert parity["device_command"] == "python -m tellapart_coreml BUNDLE"
    exact, half = parity["float32"], parity["float16"]
    photos = len(list(SAMPLES.iterdir()))
    assert exact["greedy_tokens_equal"] + exact["greedy_draws"] == photos
    assert exact["max_logit_error"] < 1e-3
    assert half["greedy_tokens_equal"] + half["greedy_draws"] + half["greedy_tokens_other"] == photos
    assert exact["max_logit_error"] < half["max_logit_error"] < 0.3
    assert parity["weights"]["found"] > 0.01  # the trunk's are folded into batch norms
    assert all(page["version"] == 7 and page["most_axes"] <= 5 for page in parity["specification"].values())


def graph_alone(source: Any, subject: Any, folder: Path, *, half: bool = False) -> CoremlSession:
    spec = coreml_spec(source.spec, window=7, tokens=subject.vocabulary.max_text_tokens, half=half)
    out = folder / spec.file
    write_coreml(source, spec, out)
    program = read_package(out)
    check_program(program, spec)
    return CoremlSession(spec, run_elsewhere(program), where="here", pad_id=subject.pad_id)


@pytest.mark.parametrize(
    "make", [make_vit_gpt2, make_blip, make_git, make_clipcap, make_smolvlm, make_clip, make_siglip]
)
def test_every_family_converts(make: Any, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    subject = dataclasses.replace(open_checkpoint(make(tmp_path / "checkpoint")), positions=6)
    drawn = drawn_pictures(subject.preprocessing.image_px, 3)
    for source in subject.graphs:
        session = graph_alone(source, subject, tmp_path)
        feeds = feeds_for(subject, source, drawn)
        assert [entry.max_abs < 1e-3 for entry in check_graph(source, session, feeds)]


def test_a_step_wired_wrongly_is_found_out(toy_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    subject = dataclasses.replace(open_checkpoint(toy_checkpoint), positions=6)
    source = subject.graphs[1]

    class Late(torch.nn.Module):  # one place too far
        def __init__(self) -> None:
            super().__init__()
            self.inner = source.module

        def forward(self, ids: Any, past_kv: Any, cross_kv: Any, position: Any = None) -> Any:
            return self.inner(ids, past_kv, cross_kv, None if position is None else position + 1)

    session = graph_alone(dataclasses.replace(source, module=Late()), subject, tmp_path)
    with pytest.raises(ParityError, match="differs from the network"):
        check_graph(source, session, feeds_for(subject, source, drawn_pictures(32, 3)))


def test_other_weights_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("coremltools", reason="the extra coreml is not installed")

    def spoiled(source: Any, spec: GraphSpec, out: Path) -> None:
        write_coreml(source, spec, out)
        if spec.role == "text":
            weights = out / WEIGHTS
            content = np.fromfile(weights, np.uint8)
            content[5000:9000] = np.roll(content[5000:9000], 64)
            content.tofile(weights)

    monkeypatch.setattr("tellapart_export.build.write_coreml", spoiled)
    checkpoint = make_clip(tmp_path / "checkpoint")
    with pytest.raises((ParityError, BundleError), match=r"text|damaged"):
        export_bundle(checkpoint, tmp_path / "out", ExportOptions(targets=("coreml",)))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_whole_numbers_stay_out_of_halves(tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    from tellapart_export.graphs import text_graph

    class Rounding(torch.nn.Module):  # ids above 2048 would come out as their neighbours
        def forward(self, ids: Any) -> Any:
            return ids.clamp(max=9).float()

    source = text_graph(Rounding(), 4, example=torch.ones(2, 4, dtype=torch.int64))
    spec = coreml_spec(source.spec, window=1, tokens=4)
    write_coreml(source, spec, tmp_path / spec.file)
    with pytest.raises(ParityError, match="has gaps above 2048"):
        check_program(read_package(tmp_path / spec.file), spec)


def test_a_package_that_is_not_its_page(made: Path) -> None:
    with open_bundle(made) as bundle:
        spec = bundle.graph("text", "coreml")
        program = read_package(bundle.root / spec.file)
        session = open_coreml(bundle, "decoder")
        past = next(tensor for tensor in session.spec.inputs if tensor.name == "past_kv").shape
    for wrong in (("ids", "int64", spec.inputs[0].shape), ("ids", "int32", (1, 3)), ("words", "int32", (1,))):
        with pytest.raises(ParityError, match="the manifest says"):
            check_program(program, dataclasses.replace(spec, inputs=(TensorSpec(*wrong),)))
    full = np.zeros(past, np.float32)
    with pytest.raises(BackendError, match="window of"):
        session.run({"ids": np.zeros((1, 1), np.int64), "past_kv": full, "cross_kv": full})
    with pytest.raises(BackendError, match="tokens, got 99"):
        CoremlSession(spec, run_elsewhere(program), where="").run({"ids": np.zeros((1, 99), np.int64)})


def test_damage_is_noticed(made: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made, tmp_path / "copy")
    weights = tmp_path / "copy" / "text.mlpackage" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:400])
    with pytest.raises(BundleIntegrityError):
        open_bundle(tmp_path / "copy")
    with pytest.raises(BundleError, match="damaged at byte"):
        read_package(weights.parents[2].parent)
    with pytest.raises(BundleError, match="no Core ML package"):
        read_package(tmp_path)
    with open_bundle(made) as bundle, staged_bundle(tmp_path / "less") as scratch:
        graphs = tuple(graph for graph in bundle.manifest.graphs if graph.target == "coreml")
        kept = {name: bundle.path(name) for name in bundle.manifest.files if "text.mlpackage" not in name}
        with pytest.raises(ManifestError, match=r"text\.mlpackage"):
            write_bundle(scratch, dataclasses.replace(bundle.manifest, graphs=graphs), kept)
        write_bundle(scratch, bundle.manifest, {name: bundle.path(name) for name in bundle.manifest.files})


def test_equal_models_become_equal_bytes(made: Path, tmp_path: Path) -> None:
    packages = []
    for name in ("one", "two"):
        model = load_model(made / "text.mlpackage")
        save_package(model, tmp_path / f"{name}.mlpackage")
        packages.append(tmp_path / f"{name}.mlpackage")
    files = [{str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
             for top in packages]  # fmt: skip
    assert files[0] == files[1]
    assert set(files[0]) == {"Manifest.json", "Data/com.apple.CoreML/model.mlmodel", WEIGHTS}


def test_the_command_for_the_device(made: Path, toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_bundle(made) as bundle:
        last = bundle.manifest.decoding.max_new_tokens
        report = prove_bundle(bundle, lambda package: run_elsewhere(read_package(package)), rounds=2)
        assert set(report) == {"vision.cross_kv", "vision.embedding", "decoder.logits", "decoder.present_kv",
                               "text.embedding"}  # fmt: skip
        assert all(entry["max_abs"] == 0 for entry in report.values())

        def other(package: Path) -> Any:
            run = run_elsewhere(read_package(package))
            return lambda feeds: {name: -array for name, array in run(feeds).items()}

        with pytest.raises(ParityError, match="Core ML is off by"):
            prove_bundle(bundle, other)
        window = draw_feeds(bundle.graph("decoder", "coreml"), rounds=3)
        places = [int(feed["position"][0]) for feed in window]
        assert places == [0, last // 2, last]
    assert prove_main([str(toy_bundle)]) == 2
    assert "no graphs for Core ML" in capsys.readouterr().err
    if sys.platform != "darwin":
        assert prove_main([str(made)]) == 1
        assert "cannot run here" in capsys.readouterr().err


def test_without_its_package_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r'pip install "tellapart\[coreml\]"'):
        export_bundle(tmp_path / "no-checkpoint", tmp_path / "out", ExportOptions(targets=("coreml",)))
    arguments = ["export", str(tmp_path), "--out", str(tmp_path / "out"), "--target", "onnx", "coreml"]
    assert main(arguments) == 2
    assert "tellapart[coreml]" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_bundle_for_core_ml_alone_says_what_runs_it(made: Path, tmp_path: Path) -> None:
    with open_bundle(made) as bundle, staged_bundle(tmp_path / "alone") as scratch:
        graphs = tuple(graph for graph in bundle.manifest.graphs if graph.target == "coreml")
        files: dict[str, Any] = {
            name: bundle.path(name) for name in bundle.manifest.files if not name.endswith(".onnx")
        }
        write_bundle(scratch, dataclasses.replace(bundle.manifest, graphs=graphs), files)
    assert main(["info", str(tmp_path / "alone")]) == 0
    assert main(["caption", str(SAMPLES / "cat.jpg"), "--model", str(tmp_path / "alone")]) == 1
    page = json.loads((tmp_path / "alone" / "tellapart.json").read_text())
    assert {graph["target"] for graph in page["graphs"]} == {"coreml"}
