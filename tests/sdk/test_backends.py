"""Which backend runs, what it is given, and how it says no."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import (
    BackendError,
    BundleIntegrityError,
    Captioner,
    ClosedError,
    MissingExtraError,
    UsageError,
)
from tellapart.backends import Session, coreml, open_session, ort, runs_here
from tellapart.backends.onnx_files import external_paths
from tellapart.backends.threads import physical_cores
from tellapart.bundle import Bundle, open_bundle, staged_bundle, write_bundle
from tellapart.commands.arguments import build_parser
from tellapart.commands.choices import runtime_options
from tellapart.types import RuntimeOptions


@pytest.fixture
def bundle(tiny_bundle: Path) -> Iterator[Bundle]:
    with open_bundle(tiny_bundle) as opened:
        yield opened


def field(number: int, content: bytes) -> bytes:
    """One length-delimited field of a protocol buffer, by its specification."""
    return bytes([number << 3 | 2, *_varint(len(content))]) + content


def _varint(value: int) -> Iterator[int]:
    while value >= 0x80:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def test_a_session_runs_by_the_names_of_the_manifest(bundle: Bundle) -> None:
    session: Session = open_session(bundle, "vision", RuntimeOptions())
    answer = session.run({"pixels": np.zeros((1, 16, 16, 3), np.uint8)})
    assert sorted(answer) == ["cross_kv", "embedding"]
    assert (session.backend, session.providers) == ("onnxruntime", ("CPUExecutionProvider",))
    session.close()
    session.close()
    with pytest.raises(ClosedError, match="vision"):
        session.run({"pixels": np.zeros((1, 16, 16, 3), np.uint8)})


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"pixels": np.zeros((1, 16, 16, 3), np.float32)},
        {"pixels": np.zeros((1, 8, 8, 3), np.uint8)},
        {"picture": np.zeros((1, 16, 16, 3), np.uint8)},
    ],
)
def test_wrong_inputs_become_a_backend_error(
    bundle: Bundle, feeds: dict[str, np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    session = open_session(bundle, "vision", RuntimeOptions())
    with pytest.raises(BackendError, match="vision graph of"):
        session.run(feeds)
    assert capfd.readouterr().err.count("\n") <= 1


def test_auto_says_why_once(
    tiny_bundle: Path, toy_images: dict[str, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tellapart"), Captioner.open(tiny_bundle) as captioner:
        captioner.caption(toy_images["red"])
    [record] = [record for record in caplog.records if record.name.startswith("tellapart.backends")]
    assert record.levelno == logging.INFO
    assert "onnxruntime" in record.message
    assert "CPUExecutionProvider" in record.message
    assert "openvino" in record.message
    caplog.clear()
    Captioner.open(tiny_bundle, runtime=RuntimeOptions(backend="onnxruntime")).close()
    assert not caplog.records


def test_core_ml_is_for_a_mac(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RuntimeOptions(backend="coreml")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(BackendError, match="macOS alone, and here is Linux; leave the backend out"):
        Captioner.open(tiny_bundle, runtime=runtime)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(BackendError, match="no graphs for coreml, only for onnx; export it again"):
        Captioner.open(tiny_bundle, runtime=runtime)
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r'pip install "tellapart\[coreml\]"'):
        coreml.runtime_version()
    assert not runs_here("coreml")


def test_a_backend_without_graphs_in_the_bundle_says_so(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="no graphs for openvino, only for onnx; export it again"):
        Captioner.open(tiny_bundle, runtime=RuntimeOptions(backend="openvino"))


def test_a_provider_that_was_asked_for_is_there_or_an_error(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"'NoSuchProvider' here; it has .*CPUExecutionProvider"):
        Captioner.open(tiny_bundle, runtime=RuntimeOptions(providers=("NoSuchProvider",)))
    asked = RuntimeOptions(providers=("CPUExecutionProvider",))
    with Captioner.open(tiny_bundle, runtime=asked) as captioner:
        assert captioner._engine.vision().session.providers == ("CPUExecutionProvider",)


def test_a_provider_that_falls_away_silently_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # onnxruntime's own behaviour when a provider's library does not load: a log line, and the CPU.
    monkeypatch.setattr(ort, "available_providers", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, sess_options, **_: real(model, sess_options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(BackendError, match="could not start CUDAExecutionProvider"):
        open_session(bundle, "vision", RuntimeOptions(providers=("CUDAExecutionProvider",)))


def test_a_provider_that_takes_no_operator_is_an_error(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    # Azure's provider is in the CPU wheel, starts, and takes no operator of such graphs.
    azure, cpu = "AzureExecutionProvider", "CPUExecutionProvider"
    if azure not in ort.available_providers() or not hasattr(
        importlib.import_module("onnxruntime").InferenceSession, "get_provider_graph_assignment_info"
    ):
        pytest.skip("this onnxruntime has no such provider, or does not tell where operators run")
    with pytest.raises(BackendError, match=rf"{azure} can run no operator of vision\.onnx: \d+ on {cpu}"):
        open_session(bundle, "vision", RuntimeOptions(providers=(azure,)))
    with caplog.at_level(logging.INFO, "tellapart"):
        session = open_session(bundle, "vision", RuntimeOptions(providers=(azure, cpu)))
    assert session.providers == (azure, cpu)
    assert f" on {cpu}" in caplog.text
    pixels = {"pixels": np.full((1, 16, 16, 3), 9, np.uint8)}
    for name, wanted in open_session(bundle, "vision", RuntimeOptions()).run(pixels).items():
        assert (session.run(pixels)[name] == wanted).all()
    assert session.run_quietly({"pixels": np.zeros((2, 16, 16, 3), np.uint8)}) is None  # for one image alone


def test_settings_reach_their_provider_and_its_reason_reaches_the_caller(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    given: list[Any] = []

    class Refuses(onnxruntime.InferenceSession):  # type: ignore[misc]
        def _create_inference_session(self, providers: Any, *_: Any) -> None:
            given.append(providers)
            raise RuntimeError("Unknown provider option: trt_engine_cash")

    monkeypatch.setattr(onnxruntime, "InferenceSession", Refuses)
    trt, cuda = "TensorrtExecutionProvider", "CUDAExecutionProvider"
    monkeypatch.setattr(ort, "available_providers", lambda: (trt, cuda, "CPUExecutionProvider"))
    arguments = ["caption", "no.jpg", "--model", str(tiny_bundle), "--provider", trt, "--provider", cuda]
    arguments += ["--provider-option", trt, "trt_engine_cash=a=b", "--provider-option", trt, "x="]
    with (
        Captioner.open(tiny_bundle, runtime=_runtime_of(arguments)) as captioner,
        pytest.raises(BackendError, match=r"refuses vision\.onnx of .*: Unknown provider option"),
    ):
        captioner.look(np.zeros((16, 16, 3), np.uint8))
    assert given == [[(trt, {"trt_engine_cash": "a=b", "x": ""}), (cuda, {})]]
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match=r"takes a name and KEY=VALUE, got .* 'x'"):
        _runtime_of([*arguments, "--provider-option", trt, "x"])
    with pytest.raises(UsageError, match="not among the providers asked for"):
        _runtime_of(["caption", "no.jpg", "--provider-option", trt, "x=1"])


def _runtime_of(arguments: list[str]) -> RuntimeOptions:
    return runtime_options(build_parser().parse_args(arguments))


def test_without_onnxruntime_the_answer_is_the_install_command(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r'pip install "tellapart\[cpu\]"'):
        Captioner.open(tiny_bundle)


def test_threads_follow_the_role_and_the_options(bundle: Bundle) -> None:
    def threads(role: str, **options: Any) -> int:
        return open_session(bundle, role, RuntimeOptions(**options)).threads

    assert [threads(role) for role in ("decoder", "text")] == [1, 1]
    assert 1 <= threads("vision") <= 4
    # Texts are spread over runs, not inside one.
    assert [threads(role, threads=3) for role in ("vision", "decoder", "text")] == [3, 3, 1]
    assert physical_cores() >= 1


def test_an_idle_captioner_costs_no_time(tiny_bundle: Path, toy_images: dict[str, np.ndarray]) -> None:
    with Captioner.open(tiny_bundle, runtime=RuntimeOptions(threads=2)) as captioner:
        for image in toy_images.values():
            captioner.caption(image)
        started = time.process_time()
        time.sleep(0.3)
        # A single spinning thread would have used 0.3 s.
        assert time.process_time() - started < 0.1


def test_a_graph_that_changed_after_opening_is_not_parsed(tiny_bundle: Path, tmp_path: Path) -> None:
    with staged_bundle(tmp_path / "copy") as scratch:
        for path in tiny_bundle.iterdir():
            (scratch / path.name).write_bytes(path.read_bytes())
    with open_bundle(tmp_path / "copy") as bundle:
        content = bytearray(bundle.read_bytes("vision.onnx"))
        content[-9] ^= 1
        (tmp_path / "copy" / "vision.onnx").write_bytes(content)
        with pytest.raises(BundleIntegrityError, match=r"vision\.onnx changed"):
            open_session(bundle, "vision", RuntimeOptions())


def bundle_with(tiny_bundle: Path, out: Path, files: dict[str, bytes], **swaps: Any) -> Path:
    """The tiny bundle with some files replaced or added, hashes right again."""
    with open_bundle(tiny_bundle) as bundle:
        fields = {**bundle.manifest.to_fields(), **swaps}
        old = {name: bundle.read_bytes(name) for name in bundle.manifest.files}
    with staged_bundle(out) as scratch:
        write_bundle(scratch, fields, {**old, **files})
    return out


def test_a_graph_of_garbage_or_other_names_is_a_backend_error(tiny_bundle: Path, tmp_path: Path) -> None:
    garbage = bundle_with(tiny_bundle, tmp_path / "garbage", {"vision.onnx": b"\xff no graph"})
    text = (tiny_bundle / "text.onnx").read_bytes()
    swapped = bundle_with(tiny_bundle, tmp_path / "swapped", {"vision.onnx": text})
    empty = bundle_with(tiny_bundle, tmp_path / "empty", {"vision.onnx": field(7, b"")})
    for path, message in (
        (garbage, "not an ONNX model"),
        (swapped, "manifest says pixels"),
        (empty, "refuses"),
    ):
        with open_bundle(path) as bundle, pytest.raises(BackendError, match=message):
            open_session(bundle, "vision", RuntimeOptions())


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin", "a/../../x", "..\\x"])
def test_numbers_from_files_outside_the_manifest_are_refused(
    tiny_bundle: Path, tmp_path: Path, location: str
) -> None:
    # ModelProto.graph(7).initializer(5).external_data(13): {key(1): "location", value(2): path}; onnx.proto3.
    entry = field(1, b"location") + field(2, location.encode())
    graph = (tiny_bundle / "vision.onnx").read_bytes() + field(7, field(5, field(13, entry)))
    path = bundle_with(tiny_bundle, tmp_path / "outside", {"vision.onnx": graph})
    with open_bundle(path) as bundle, pytest.raises(BundleIntegrityError, match="manifest does not list"):
        open_session(bundle, "vision", RuntimeOptions())


def test_external_paths_are_found_wherever_a_tensor_can_be(tiny_bundle: Path) -> None:
    def tensor(name: str) -> bytes:
        return field(13, field(1, b"offset") + field(2, b"0")) + field(
            13, field(1, b"location") + field(2, name.encode())
        )

    node = field(1, field(5, field(5, tensor("attribute"))))  # node(1).attribute(5).t(5)
    branch = field(1, field(5, field(6, field(5, tensor("branch")))))  # .g(6).initializer(5)
    sparse = field(15, field(1, tensor("sparse")))  # sparse_initializer(15).values(1)
    function = bytes([25 << 3 & 0x7F | 2 | 0x80, 25 >> 4])  # field 25 needs two bytes
    body = field(7, field(5, field(10, tensor("function"))))  # node(7).attribute(5).tensors(10)
    model = (
        field(7, field(5, tensor("plain")) + node + branch + sparse) + function + bytes([len(body)]) + body
    )
    assert external_paths(model) == {"plain", "attribute", "branch", "sparse", "function"}
    for name in ("vision", "decoder", "text"):
        assert external_paths((tiny_bundle / f"{name}.onnx").read_bytes()) == set()


@pytest.mark.parametrize("content", [b"\xff" * 20, b"\x3a\x7f", b"\x0b", field(7, b"\x2a\x05ab")])
def test_what_is_no_protocol_buffer_is_a_backend_error(content: bytes) -> None:
    with pytest.raises(BackendError, match="not an ONNX model"):
        external_paths(content)


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="writes a graph with the onnx package")
def test_numbers_in_a_listed_file_are_read(tiny_bundle: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(tiny_bundle / "text.onnx")
    onnx.save_model(
        model, tmp_path / "text.onnx", save_as_external_data=True, location="text.bin", size_threshold=64
    )
    files = {name: (tmp_path / name).read_bytes() for name in ("text.onnx", "text.bin")}
    assert external_paths(files["text.onnx"]) == {"text.bin"}
    path = bundle_with(tiny_bundle, tmp_path / "split", files)
    feeds = {"ids": np.array([[2, 5, 3]], np.int64)}
    answers = []
    for place in (path, tiny_bundle):
        with open_bundle(place) as opened:
            answers.append(open_session(opened, "text", RuntimeOptions()).run(feeds)["embedding"])
    assert (answers[0] == answers[1]).all()
