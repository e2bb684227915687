"""Core ML packages: what the page says, what runs them, and what is refused; all without a Mac."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from tellapart import Captioner, DecodeOptions, RuntimeOptions  # noqa: E402
from tellapart.backends import coreml, open_session  # noqa: E402
from tellapart.bundle import open_bundle, staged_bundle, write_bundle  # noqa: E402
from tellapart.cli import main  # noqa: E402
from tellapart.errors import (  # noqa: E402
    BackendError,
    BundleError,
    BundleIntegrityError,
    ClosedError,
    ManifestError,
    MissingExtraError,
    ParityError,
    UsageError,
)
from tellapart.manifest import TensorSpec  # noqa: E402
from tellapart_coreml.package import WEIGHTS, load_model, read_package, save_package  # noqa: E402
from tellapart_coreml.prove import draw_feeds, prove_bundle  # noqa: E402
from tellapart_coreml.prove import main as prove_main  # noqa: E402
from tellapart_coreml.session import check_program, open_elsewhere, run_elsewhere  # noqa: E402
from tellapart_export.build import ExportOptions, export_bundle  # noqa: E402

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


def test_a_package_that_is_not_its_page(made: Path) -> None:
    with open_bundle(made) as bundle:
        spec = bundle.graph("text", "coreml")
        program = read_package(bundle.root / spec.file)
        session, reader = (open_elsewhere(bundle, role) for role in ("decoder", "text"))
        pages = bundle.graph("decoder", "coreml").inputs
    [past] = [tuple(map(int, page.shape)) for page in pages if page.name == "past_kv"]
    for wrong in (("ids", "int64", spec.inputs[0].shape), ("ids", "int32", (1, 3)), ("words", "int32", (1,))):
        with pytest.raises(ParityError, match="the manifest says"):
            check_program(program, dataclasses.replace(spec, inputs=(TensorSpec(*wrong),)))
    full = np.zeros(past, np.float32)
    with pytest.raises(BackendError, match="window of"):
        session.run({"ids": np.zeros((1, 1), np.int64), "past_kv": full, "cross_kv": full})
    with pytest.raises(BackendError, match="tokens, got 99"):
        reader.run({"ids": np.zeros((1, 99), np.int64)})
    for feeds in ({}, {"words": np.zeros((1, 3), np.int64)}):
        with pytest.raises(BackendError, match=r"text\.mlpackage takes ids, and was given"):
            reader.run(feeds)
    with pytest.raises(BackendError, match=r"takes ids as int32 .*float32"):
        reader._inner.run({"ids": np.zeros(spec.inputs[0].shape, np.float32)})
    free = dataclasses.replace(spec, inputs=(TensorSpec("ids", "int32", (1, "t")),))
    with pytest.raises(BackendError, match="free axes, and packages for Core ML have fixed shapes"):
        coreml.session_of(free, run_elsewhere(program), name="", providers=())


def test_damage_is_noticed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path / "copy")
    weights = tmp_path / "copy" / "text.mlpackage" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:400])
    with pytest.raises(BundleIntegrityError):
        open_bundle(tmp_path / "copy")
    with pytest.raises(BundleError, match="damaged at byte"):
        read_package(weights.parents[2].parent)
    with pytest.raises(BundleError, match="no Core ML package"):
        read_package(tmp_path)
    program = read_package(made / "text.mlpackage")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingExtraError, match=r"tellapart\[quantize\]"):
            run_elsewhere(program)
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


def test_the_command_for_the_device(
    made: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_bundle(made) as bundle:
        last = bundle.manifest.decoding.max_new_tokens
        report = prove_bundle(bundle, partial(open_elsewhere, bundle), rounds=2)
        assert set(report) == {"vision.cross_kv", "vision.embedding", "decoder.logits", "decoder.present_kv",
                               "text.embedding"}  # fmt: skip
        assert all(entry["max_abs"] == 0 for entry in report.values())

        def other(role: str) -> Any:
            session = open_elsewhere(bundle, role)
            run = session.run
            monkeypatch.setattr(session, "run", lambda feeds: {k: -v for k, v in run(feeds).items()})
            return session

        with pytest.raises(ParityError, match="Core ML is off by"):
            prove_bundle(bundle, other)
        window = draw_feeds(bundle.graph("decoder", "coreml"), rounds=3)
        places = [int(feed["position"][0]) for feed in window]
        assert places == [0, last // 2, last]
    assert prove_main([str(toy_bundle)]) == 2
    assert "no graphs for Core ML" in capsys.readouterr().err
    assert prove_main([str(made)]) == 1
    assert "Core ML runs on macOS alone" in capsys.readouterr().err


class FakeModel:
    """An `MLModel` as a Mac has it, but for what computes: the same operations by onnxruntime."""

    refusal: ClassVar[Exception | None] = None
    opened: ClassVar[list[tuple[Path, str]]] = []

    def __init__(self, path: str, compute_units: Any) -> None:
        self.opened.append((Path(path), compute_units.name))
        self._framework_error = self.refusal
        self.__proxy__ = None if self.refusal else object()
        self._run = run_elsewhere(read_package(Path(path)))

    def predict(self, data: dict[str, Any]) -> Any:
        for name, value in data.items():
            if name == "pixels":
                assert (value.mode, value.size) == ("RGB", (32, 32))
            else:  # nothing that would be freed on a thread of Core ML's
                assert value.dtype in (np.float32, np.int32)
                assert any(value is buffer for buffer in coreml._ALL_BUFFERS)
        found = self._run(data)
        data.clear()  # as coremltools, which changes what it is given
        return found


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> type[FakeModel]:
    """A Mac, as far as the SDK can see."""
    coremltools = pytest.importorskip("coremltools")
    monkeypatch.setattr(coreml, "is_mac", lambda: True)
    monkeypatch.setattr(coremltools.models, "MLModel", FakeModel)
    monkeypatch.setattr(FakeModel, "opened", [])
    return FakeModel


COREML = RuntimeOptions(backend="coreml")


def test_the_sdk_captions_from_packages(
    made: Path, mac: type[FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    photos = sorted(SAMPLES.iterdir())
    with Captioner.open(made, runtime=COREML) as ours, Captioner.open(made) as theirs:
        assert theirs._engine.vision().session.backend == "onnxruntime"
        for options in (DecodeOptions(beams=1), DecodeOptions(beams=3)):
            said = [caption.token_ids for caption in ours.caption_many(photos, options=options, batch_size=2)]
            assert said == [theirs.caption(photo, options=options).token_ids for photo in photos]
        for mode in ("plain", "rerank", "contrast"):
            bags = [captioner.bag(photos[:3], mode=mode) for captioner in (ours, theirs)]
            assert bags[0].ranks == bags[1].ranks
            assert [caption.text for caption in bags[0].captions] == [
                found.text for found in bags[1].captions
            ]
        texts = ["a dog", "", "two of them, running"]
        np.testing.assert_allclose(
            ours.retriever.embed_texts(texts), theirs.retriever.embed_texts(texts), atol=5e-3
        )
        session = ours._engine.vision().session
        assert (session.backend, session.providers, session.threads) == ("coreml", ("ALL",), 1)
    assert main(["verify", str(made), "--backend", "coreml", "--provider", "CPU_AND_NE"]) == 0
    assert {units for _, units in mac.opened} == {"ALL", "CPU_AND_NE"}
    assert not any(path.exists() for path, _ in mac.opened)  # the copies go with their models
    found = []
    for backend in ("coreml", "onnxruntime"):
        capsys.readouterr()
        assert (
            main(["search", str(SAMPLES), "a b", "--model", str(made), "--backend", backend, "--json"]) == 0
        )
        found.append([match["image"] for match in json.loads(capsys.readouterr().out)["matches"]])
    assert found[0] == found[1]


def test_the_command_for_the_device_captions_photos(
    made: Path, mac: type[FakeModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(made), "--rounds", "1", "--units", "CPU_ONLY", "--images"]
    assert prove_main([*arguments, str(SAMPLES)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["captions"] == {"photos": 5, "equal": 5, "first_other": None}
    assert {units for _, units in mac.opened} == {"CPU_ONLY"}
    assert prove_main([*arguments, str(tmp_path)]) == 2
    assert prove_main([str(made), "--units", "GPU"]) == 1
    assert "CPU_ONLY; GPU was asked for" in capsys.readouterr().err


def test_auto_takes_core_ml_where_nothing_else_can(
    made: Path, mac: type[FakeModel], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tellapart"):
        with Captioner.open(made) as captioner:
            assert captioner._engine.text().session.backend == "onnxruntime"
        assert "coreml would be next" in caplog.text
        monkeypatch.setattr("tellapart.backends._is_installed", lambda name: name != "onnxruntime")
        with Captioner.open(made) as captioner:
            assert captioner._engine.text().session.backend == "coreml"
        assert "onnxruntime is not installed" in caplog.text
        monkeypatch.setattr(coreml, "is_mac", lambda: False)
        monkeypatch.setattr("tellapart.backends._is_installed", lambda name: True)
        Captioner.open(made).close()
    assert "coreml needs macOS and coremltools" in caplog.text


def test_what_core_ml_refuses_is_a_sentence(
    made: Path, mac: type[FakeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match=r"ALL, CPU_AND_NE, CPU_AND_GPU, CPU_ONLY; ANE was asked for"):
        Captioner.open(made, runtime=RuntimeOptions(backend="coreml", providers=("ANE",)))
    with pytest.raises(BackendError, match="takes one of the compute units"):
        Captioner.open(made, runtime=RuntimeOptions(backend="coreml", providers=("ALL", "CPU_ONLY")))
    with open_bundle(made) as bundle:
        settings = {"ALL": {"reshapeFrequency": "Frequent"}}
        asked = dataclasses.replace(COREML, providers=("ALL",), provider_options=settings)
        with pytest.raises(BackendError, match="no settings besides its compute units"):
            open_session(bundle, "text", asked)
        session = open_session(bundle, "text", COREML)
        monkeypatch.setattr(mac, "refusal", RuntimeError("Error compiling model: no.\nMore."))
        with pytest.raises(
            BackendError, match=r"refuses text\.mlpackage of .*: Error compiling model: no\.$"
        ):
            open_session(bundle, "text", COREML)
        monkeypatch.setattr(mac, "_framework_error", None, raising=False)
        monkeypatch.setattr(
            mac, "__init__", lambda self, path, compute_units: setattr(self, "__proxy__", None)
        )
        with pytest.raises(BackendError, match="without its part for Core ML"):
            open_session(bundle, "text", COREML)
        monkeypatch.setattr(coreml, "find_spec", lambda name: object())
        with pytest.raises(BackendError, match="asks for a newer system than macOS"):
            open_session(bundle, "text", COREML)
        ids = {"ids": np.zeros((1, 3), np.int64)}
        for answer, message in (
            (RuntimeError("no memory"), "Core ML failed in the text graph of .*: no memory"),
            ({"embedding": np.zeros((1, 3))}, r"gave embedding as \(1, 3\)"),
            ({}, "gave embedding as"),
        ):
            monkeypatch.setattr(session._inner, "_predict", _answer(answer))
            with pytest.raises(BackendError, match=message):
                session.run(ids)
            assert session.run_quietly(ids) is None
        session.close()
        session.close()
        with pytest.raises(ClosedError, match="the text graph of"):
            session.run(ids)


def _answer(answer: Any) -> Callable[..., Any]:
    def predict(*_: Any, **__: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return predict


def test_core_ml_reads_what_was_hashed(
    made: Path, mac: type[FakeModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    with open_bundle(copy) as bundle:
        first = open_session(bundle, "text", COREML)
        buffers = len(coreml._ALL_BUFFERS)
        first.close()
        open_session(bundle, "text", COREML).close()
        assert len(coreml._ALL_BUFFERS) == buffers
        weights = copy / "text.mlpackage" / WEIGHTS
        content = bytearray(weights.read_bytes())
        content[-9] ^= 1
        weights.write_bytes(content)
        mac.opened.clear()
        with pytest.raises(BundleIntegrityError, match=r"weight\.bin changed"):
            open_session(bundle, "text", COREML)
        assert mac.opened == []
        monkeypatch.setattr(Path, "mkdir", _answer(OSError(28, "No space left on device")))
        with pytest.raises(BackendError, match="No space left on device; make room"):
            open_session(bundle, "vision", COREML)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_blocks_of_the_trunk_are_named_after_the_graph_beside(made: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from tellapart_quantization.activations_coreml import trunk_operations
    from tellapart_quantization.surgery import name_nodes

    graph = onnx.load_model(made / "vision.onnx")
    name_nodes(graph)
    whole = read_package(made / "vision.mlpackage")
    blocks = trunk_operations(whole, graph)
    kinds = {value.name: operation.kind for operation in whole.operations for value in operation.outputs}
    assert [kinds[name] for name in blocks["stem"]] == ["cast", "sub", "mul", "pad", "conv", "clip"]
    assert [kinds[name] for name in blocks["blocks.0"]] == ["conv", "clip", "conv"]
    assert [kinds[name] for name in blocks["head"]] == ["conv", "clip"]
    fewer = dataclasses.replace(whole, operations=whole.operations[:9])
    with pytest.raises(UsageError, match=r"has \d convolutions and the trunk of the ONNX graph beside it"):
        trunk_operations(fewer, graph)


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
