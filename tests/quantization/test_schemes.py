"""Schemes for other processors, "auto", CIDEr-D in the gate, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnx
from PIL import Image

from limited_disk import COMMAND, run_limited
from tellapart import Captioner
from tellapart.bundle import open_bundle
from tellapart.cli import main
from tellapart.errors import BudgetError, DataError, MissingExtraError, ParityError, UsageError
from tellapart.photos import Photos
from tellapart_quantization.build import QuantizeOptions, quantize_bundle
from tellapart_quantization.int8_coreml import compare_weights
from tellapart_quantization.report import Budget, check_budget
from tellapart_quantization.symmetric_onnx import check_symmetric
from tellapart_quantization.timing import time_in_turns

pytestmark = pytest.mark.train
ANY = Budget(min_agreement=0.0, max_recall_drop=100.0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 16 pictures of one kind, `captions.jsonl` beside it."""
    root = tmp_path_factory.mktemp("schemes")
    folder, draw = root / "photos", np.random.default_rng(0)
    folder.mkdir()
    with (root / "captions.jsonl").open("w") as lines:
        for index in range(16):
            base = draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(base).resize((32, 32)).save(folder / f"{index:02}.png")
            texts = [f"a b {index % 10}", "c d"]
            lines.write(json.dumps({"image": f"{index:02}.png", "split": "val", "captions": texts}) + "\n")
    return root


def options(drawn: Path, **changes: Any) -> QuantizeOptions:
    given = QuantizeOptions(images=drawn / "photos", calibration_limit=6, check_images=6, budget=ANY)
    return dataclasses.replace(given, **changes)


def graph(bundle: Path, name: str) -> Any:
    return onnx.load_model(bundle / f"{name}.onnx")


def arrays(model: Any) -> dict[str, Any]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def assert_no_sum_of_the_trunk_overflows(bundle: Path) -> None:
    """Two products of an unsigned and a signed byte, added in 16 bits, as x86 does without VNNI."""
    vision = graph(bundle, "vision")
    stored = arrays(vision)
    producers = {name: node for node in vision.graph.node for name in node.output}
    weights = []
    for node in vision.graph.node:
        maker = producers.get(node.input[1]) if node.op_type == "Conv" else None
        if maker is not None and maker.op_type == "DequantizeLinear":
            weights.append(stored[maker.input[0]])
    assert len(weights) > 10
    assert all(array.dtype == np.int8 for array in weights)
    assert max(2 * 255 * int(np.abs(array.astype(int)).max()) for array in weights) <= 2**15 - 1


def test_portable_sums_cannot_overflow(toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    manifest = quantize_bundle(toy_bundle, tmp_path / "out", options(drawn, scheme="portable"))
    assert_no_sum_of_the_trunk_overflows(tmp_path / "out")
    operators, products = set(), []
    for name in ("vision", "decoder", "text"):
        model = graph(tmp_path / "out", name)
        stored = arrays(model)
        operators |= {node.op_type for node in model.graph.node}
        products += [stored[node.input[1]] for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) > 10
    assert max(int(np.abs(array.astype(int)).max()) for array in products) <= 64
    assert all(array.dtype == np.int8 for array in products)
    assert "MatMulNBits" not in operators  # unsigned weights, whose sums may overflow
    report = manifest.metrics["quantization"]
    assert report["time"]["rounds"] == 15
    assert report["time"]["ratio"] > 0
    assert "device" not in report


def test_universal_is_a_trunk_of_seven_bits_and_weights_of_eight(
    toy_bundle: Path, drawn: Path, tmp_path: Path
) -> None:
    for scheme in ("universal", "vnni"):
        quantize_bundle(toy_bundle, tmp_path / scheme, options(drawn, scheme=scheme))
    assert_no_sum_of_the_trunk_overflows(tmp_path / "universal")
    with pytest.raises(AssertionError):
        assert_no_sum_of_the_trunk_overflows(tmp_path / "vnni")
    for name in ("decoder", "text"):
        assert graph(tmp_path / "universal", name) == graph(tmp_path / "vnni", name)


def test_tensorrt_is_explicit_and_symmetric(toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    manifest = quantize_bundle(toy_bundle, tmp_path / "out", options(drawn, scheme="tensorrt"))
    pairs = {name: check_symmetric(graph(tmp_path / "out", name)) for name in ("vision", "decoder", "text")}
    assert pairs["vision"] > 40
    assert min(pairs.values()) >= 2
    report = manifest.metrics["quantization"]
    assert report["device"].startswith("unproved on device")
    assert "TensorrtExecutionProvider" in report["device_command"]
    assert "time" not in report  # of a processor that it is not for
    assert report["size_mib"]["int8"] < 0.5 * report["size_mib"]["reference"]
    assert report["mean_image_cosine"] > 0.3  # random weights; unlike rows would be near 0
    with Captioner.open(tmp_path / "out") as captioner:
        assert captioner.caption(drawn / "photos" / "00.png").token_ids
    # The word table is the output layer too, and is stored once.
    tables = [
        array for array in arrays(graph(tmp_path / "out", "decoder")).values() if array.shape[:1] == (64,)
    ]
    assert [table.dtype for table in tables if table.ndim == 2] == [np.int8]


def test_what_tensorrt_does_not_take_is_named(toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    quantize_bundle(toy_bundle, tmp_path / "vnni", options(drawn))
    with pytest.raises(ParityError, match=r"uint8|com\.microsoft"):
        check_symmetric(graph(tmp_path / "vnni", "vision"))
    with pytest.raises(ParityError, match="onnxruntime's own"):
        check_symmetric(graph(tmp_path / "vnni", "decoder"))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy ViT-GPT2 for onnxruntime and Core ML."""
    pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    from tellapart_export.build import ExportOptions, export_bundle
    from toy_families import make_vit_gpt2

    base = tmp_path_factory.mktemp("packages")
    checkpoint = make_vit_gpt2(base / "checkpoint")
    export_bundle(checkpoint, base / "float", ExportOptions(targets=("onnx", "coreml")))
    return base / "float"


def test_core_ml_weights_in_8_bits(packages: Path, drawn: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in packages.rglob("*") if path.is_file()}
    manifest = quantize_bundle(packages, tmp_path / "out", options(drawn, scheme="coreml"))
    assert before == {path: path.read_bytes() for path in packages.rglob("*") if path.is_file()}
    assert (manifest.targets, manifest.precision, manifest.scheme) == (("coreml",), "mixed", "coreml")
    report = manifest.metrics["quantization"]
    assert report["device"].startswith("unproved on device")
    assert report["device_command"] == "python -m tellapart_coreml BUNDLE"
    assert report["runtime"] == {"reference": "onnxruntime", "int8": "coreml"}
    assert report["token_agreement"] > 0.5
    assert "time" not in report
    for role in ("vision", "decoder"):
        assert report["weights"][role]["numbers"] > 0.8
        assert 0 < report["weights"][role]["largest_step"] <= 0.57
        name = f"{role}.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
        with open_bundle(packages) as source:
            assert manifest.files[name].bytes < 0.7 * source.manifest.files[name].bytes


def test_core_ml_activations_in_8_bits(packages: Path, drawn: Path, tmp_path: Path) -> None:
    from tellapart_coreml.package import read_package
    from tellapart_coreml.session import run_elsewhere
    from tellapart_quantization.activations_coreml import activation_ranges, check_activations

    manifest = quantize_bundle(packages, tmp_path / "out", options(drawn, scheme="coreml-activations"))
    assert (manifest.targets, manifest.scheme) == (("coreml",), "coreml-activations")
    report = manifest.metrics["quantization"]
    assert report["device"].startswith("unproved on device")
    assert report["calibrated_on"] == 6
    assert report["weights"]["vision"]["pairs"] > 10
    assert "pairs" not in report["weights"]["decoder"]
    small, whole = (read_package(path / "vision.mlpackage") for path in (tmp_path / "out", packages))
    assert (whole.version, small.version) == (7, 8)
    draw = np.random.default_rng(1)
    pixels = draw.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    for picture in pixels:
        feed = {"pixels": picture}
        wanted, found = run_elsewhere(whole)(feed)["cross_kv"], run_elsewhere(small)(feed)["cross_kv"]
        cosine = float((wanted * found).sum() / np.linalg.norm(wanted) / np.linalg.norm(found))
        assert 0.9 < cosine < 0.999999
    ranges = activation_ranges(whole, lambda: iter([{"pixels": pixels}]), percentile=100.0)
    with pytest.raises(ParityError, match="its range asks for"):
        check_activations(
            small, {name: (2 * low, 2 * high) for name, (low, high) in ranges.items()}, role="v"
        )
    with pytest.raises(ParityError, match="rounded no activation"):
        check_activations(whole, ranges, role="vision")


def test_core_ml_activations_keep_operations_in_float(tmp_path: Path) -> None:
    coremltools = pytest.importorskip("coremltools", reason="the extra coreml is not installed")
    from coremltools.converters.mil import Builder as builder

    from tellapart_coreml.package import load_model, read_package, save_package
    from tellapart_quantization.activations_coreml import check_activations, quantize_activations

    draw = np.random.default_rng(1)
    first, second = (draw.standard_normal(shape).astype(np.float32) for shape in ((8, 3, 1, 1), (4, 8, 1, 1)))

    @builder.program(input_specs=[builder.TensorSpec((1, 3, 8, 8))], opset_version=coremltools.target.iOS16)
    def program(x: Any) -> Any:
        between = builder.conv(x=x, weight=first, name="first")
        return builder.conv(x=between, weight=second, name="second")

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # progress bars
        warnings.simplefilter("ignore")
        made = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS16)
        save_package(made, tmp_path / "whole.mlpackage")
        whole = read_package(tmp_path / "whole.mlpackage")
        [one, _] = [op.outputs[0].name for op in whole.operations if op.kind == "conv"]
        ranges = {value.name: (-4.0, 4.0) for op in whole.operations for value in op.outputs} | {
            "x": (-4.0, 4.0)
        }
        for name, kept in (("all", ()), ("kept", (one,))):
            save_package(
                quantize_activations(load_model(tmp_path / "whole.mlpackage"), ranges, keep_float=kept),
                tmp_path / f"{name}.mlpackage",
            )
        gc.collect()
    pairs = {}
    for name in ("all", "kept"):
        small = read_package(tmp_path / f"{name}.mlpackage")
        pairs[name] = check_activations(small, ranges, role="vision")["pairs"]
    assert 0 < pairs["kept"] < pairs["all"]


def test_core_ml_names_blocks_of_trunks_alone(packages: Path, drawn: Path, tmp_path: Path) -> None:
    given = options(drawn, scheme="coreml-activations")
    for keep, message in (
        (("auto",), "name the blocks for Core ML"),
        (("stem",), "has no trunk of convolutions"),
    ):
        with pytest.raises(UsageError, match=message):
            quantize_bundle(packages, tmp_path / "out", dataclasses.replace(given, keep_float=keep))
    assert not list(tmp_path.iterdir())


def test_other_weights_are_found_out(packages: Path, drawn: Path, tmp_path: Path) -> None:
    from tellapart_coreml.package import read_package

    quantize_bundle(packages, tmp_path / "out", options(drawn, scheme="coreml"))
    small = read_package(tmp_path / "out" / "decoder.mlpackage")
    whole = read_package(packages / "decoder.mlpackage")
    compare_weights(whole, small, role="decoder")
    name = next(name for name, how in small.stored.items() if how == "int8")
    spoiled = np.roll(np.asarray(small.constants[name]), 1, axis=-1)
    other = dataclasses.replace(small, constants={**small.constants, name: spoiled})
    with pytest.raises(ParityError, match="steps from what it was"):
        compare_weights(whole, other, role="decoder")
    with pytest.raises(ParityError, match="nothing in 8 bits"):
        compare_weights(whole, whole, role="decoder")


def test_core_ml_needs_packages_and_its_package(
    toy_bundle: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="--target onnx coreml"):
        quantize_bundle(toy_bundle, tmp_path / "out", options(drawn, scheme="coreml"))
    import sys

    from tellapart_quantization.int8_coreml import write_coreml_graphs

    monkeypatch.setitem(sys.modules, "coremltools", None)
    with open_bundle(toy_bundle) as bundle, pytest.raises(MissingExtraError, match=r"tellapart\[coreml\]"):
        write_coreml_graphs(bundle, tmp_path, bundle.manifest.graphs, say=print)
    assert not list(tmp_path.iterdir())


def fake_times(ratios: Sequence[float]) -> Any:
    def measure(reference: Any, candidates: Sequence[Any], photos: Any, names: Any) -> list[dict[str, Any]]:
        return [{"rounds": 1, "ratio": ratio} for ratio, _ in zip(ratios, candidates, strict=False)]

    return measure


def test_auto_keeps_the_fastest_within_the_budget(
    toy_bundle: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tellapart_quantization.auto.time_in_turns", fake_times([0.9, 0.4, 1.2, 0.5, 0.6, 0.7])
    )
    manifest = quantize_bundle(toy_bundle, tmp_path / "out", options(drawn, scheme="auto"))
    report = manifest.metrics["quantization"]
    tried = {entry["scheme"]: entry for entry in report["tried"]}
    # None for absent hardware.
    assert {"vnni", "weights", "dynamic", "portable", "universal", "openvino"} == set(tried)
    assert [name for name, entry in tried.items() if entry["kept"]] == [manifest.scheme] == ["weights"]
    assert tried["vnni"]["reason"] == "slower than another"
    assert tried["dynamic"]["reason"] == "no quicker than float"
    assert tried["vnni"]["token_agreement"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.long
def test_auto_refuses_what_is_over_budget_or_slow(
    toy_bundle: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = dataclasses.replace(ANY, max_mib=0.1)
    with pytest.raises(BudgetError, match=r"no scheme keeps.*vnni: .*max-mib"):
        quantize_bundle(toy_bundle, tmp_path / "out", options(drawn, scheme="auto", budget=tight))
    monkeypatch.setattr("tellapart_quantization.auto.time_in_turns", fake_times([1.1] * 6))
    with pytest.raises(BudgetError, match="no quicker than float"):
        quantize_bundle(toy_bundle, tmp_path / "out", options(drawn, scheme="auto"))
    assert list(tmp_path.iterdir()) == []


def test_times_are_taken_in_turns(toy_bundle: Path, drawn: Path) -> None:
    with open_bundle(toy_bundle) as bundle, Photos(drawn / "photos") as photos:
        found = time_in_turns(bundle, [bundle, bundle], photos, photos.names, rounds=8)
    assert len(found) == 2
    for entry in found:  # the same bundle thrice
        assert entry["reference_ms"] > 0
        assert 0.3 < entry["ratio"] < 3


def test_cider_is_in_the_gate(
    toy_bundle: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report: dict[str, Any] = {
        "token_agreement": 1.0,
        "size_mib": {"reference": 80.0, "int8": 30.0},
        "cider_d": {"reference": 0.6045, "int8": 0.6},
    }
    check_budget(report, Budget(max_cider_drop=0.005))
    check_budget(report, Budget())  # nothing promised
    for worse in (0.5994, float("nan")):
        report["cider_d"]["int8"] = worse
        with pytest.raises(BudgetError, match=r"CIDEr-D fell by .*--max-cider-drop"):
            check_budget(report, Budget(max_cider_drop=0.005))
    command = ["quantize", str(toy_bundle), "--out", str(tmp_path / "out"), "--images", str(drawn / "photos")]
    command += ["--calibration-limit", "2", "--check-images", "4", "--scheme", "weights"]
    command += ["--min-agreement", "0", "--max-recall-drop", "100"]
    assert main([*command, "--max-cider-drop", "0.1"]) == 2  # of what?
    capsys.readouterr()
    command += ["--captions", str(drawn / "captions.jsonl"), "--max-cider-drop"]
    assert main([*command, "-20"]) == 1
    assert "--max-cider-drop" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*command, "10"]) == 0
    assert set(json.loads(capsys.readouterr().out)["metrics"]["cider_d"]) == {"reference", "int8"}


def test_the_scan_is_in_the_report(
    toy_bundle: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tellapart_quantization import sensitivity

    every = sensitivity.trunk_blocks
    few = ("stem", "blocks.0")  # the whole scan takes half a minute
    monkeypatch.setattr(sensitivity, "trunk_blocks", lambda model: {name: every(model)[name] for name in few})
    given = options(drawn, keep_float=("auto",), auto_blocks=1)
    report = quantize_bundle(toy_bundle, tmp_path / "out", given).metrics["quantization"]
    [base, *rows] = report["sensitivity"]
    assert base["float"] == []
    assert [row["float"] for row in rows] == [["stem"], ["blocks.0"]]
    assert all(row["error"] > 0 and row["size_mib"] > 0 for row in rows)
    if report["float_blocks"]:
        assert min(rows, key=lambda row: row["error"])["float"] == report["float_blocks"]


def test_bad_ends_leave_the_old_bundle(toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no photo inside"):
        quantize_bundle(toy_bundle, tmp_path / "out", options(drawn, images=tmp_path / "empty"))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    out = tmp_path / "out"
    quantize_bundle(toy_bundle, out, options(drawn, scheme="weights"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    command = ["quantize", str(toy_bundle), "--out", str(out), "--images", str(drawn / "photos")]
    command += ["--scheme", "weights", "--min-agreement", "0", "--check-images", "2"]
    assert main(command) == 1  # in use
    done = run_limited(COMMAND, drawn, *command, "--overwrite")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "make room" in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "out"}
