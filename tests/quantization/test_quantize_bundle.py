"""A toy bundle through the whole of `quantize`: what comes out, what is refused, what is left behind."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from PIL import Image

from tellapart import Captioner
from tellapart.bundle import open_bundle, staged_bundle, write_bundle
from tellapart.checks import FAST_INT8
from tellapart.cli import main
from tellapart.doctor import examine_machine
from tellapart.errors import BudgetError, DataError, UsageError
from tellapart.photos import Photos, read_captions, spread
from tellapart_quantization.build import QuantizeOptions, quantize_bundle
from tellapart_quantization.features import feature_session
from tellapart_quantization.report import Budget, check_budget, find_divergence

pytestmark = pytest.mark.train

ANY = Budget(min_agreement=0.0, max_recall_drop=100.0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 noisy 32 px photos, as a folder and as `photos.tar` beside it, with captions of two splits."""
    root = tmp_path_factory.mktemp("photos")
    folder, draw = root / "photos", np.random.default_rng(0)
    folder.mkdir()
    with tarfile.open(root / "photos.tar", "w") as tar, (root / "captions.jsonl").open("w") as lines:
        for index in range(24):
            name = f"{index:02}.png"
            base = draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(base).resize((32, 32)).save(folder / name)
            data = (folder / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            split = "val" if index % 3 == 0 else "train"
            record = {"image": name, "split": split, "captions": [f"a b {index % 10}", "c d"]}
            lines.write(json.dumps(record) + "\n")
    return root


def options(drawn: Path, **changes: object) -> QuantizeOptions:
    return dataclasses.replace(
        QuantizeOptions(images=drawn / "photos", calibration_limit=8, check_images=8, budget=ANY), **changes
    )


@pytest.fixture(scope="module")
def int8_bundle(toy_bundle: Path, drawn: Path) -> Path:
    out = drawn / "int8"
    given = options(
        drawn, images=drawn / "photos.tar", captions=drawn / "captions.jsonl", split="val", keep_float=(),
        scheme="universal",  # "vnni" overflows where these tests may run
    )  # fmt: skip
    quantize_bundle(toy_bundle, out, given)
    return out


def test_the_bundle_is_small_and_says_what_it_is(toy_bundle: Path, int8_bundle: Path) -> None:
    with open_bundle(toy_bundle) as before, open_bundle(int8_bundle) as after:
        manifest = after.manifest
        assert (manifest.precision, manifest.scheme) == ("int8", "universal")
        assert manifest.graphs == before.manifest.graphs
        assert set(manifest.files) == set(before.manifest.files)
        assert manifest.files["vision.onnx"].bytes < 0.35 * before.manifest.files["vision.onnx"].bytes
        report = manifest.metrics["quantization"]
        assert report["photos"] == 8
        assert report["calibrated_on"] == 8
        assert report["float_blocks"] == []
        assert report["machine"]["cores"] >= 1
        assert "| size mib | " in after.read_bytes("REPORT.md").decode("utf-8")
        assert 0 < report["token_agreement"] <= 1
        assert (report["first_divergence"] is None) == (report["caption_agreement"] == 1)
        # Random weights enlarge every rounding from layer to layer; unlike rows would be near 0.
        assert report["mean_image_cosine"] > 0.5
        assert set(report["retrieval"]["text_to_image"]) == {"r1", "r5", "r10"}
        assert report["retrieval"]["text_to_image"]["r10"]["int8"] == 100.0  # of 8 photos
        assert manifest.parity == before.manifest.parity


def test_the_scheme_keeps_the_first_blocks_in_float(toy_bundle: Path, drawn: Path, int8_bundle: Path) -> None:
    out = drawn / "mixed"
    manifest = quantize_bundle(toy_bundle, out, options(drawn, scheme="universal"))
    assert manifest.precision == "mixed"
    assert manifest.metrics["quantization"]["float_blocks"] == ["stem", "blocks.0", "blocks.1"]
    with Photos(drawn / "photos") as photos, open_bundle(out) as bundle:
        (pixels,) = photos.batches(photos.names[:6], bundle.manifest.preprocessing, batch_size=6)
    wanted = feature_session(toy_bundle)(pixels)
    full, mixed = (np.linalg.norm(feature_session(path)(pixels) - wanted) for path in (int8_bundle, out))
    assert 0 < mixed < full < 0.75 * np.linalg.norm(wanted)


def test_new_heads_find_the_same_features(
    toy_checkpoint: Path, toy_bundle: Path, int8_bundle: Path, drawn: Path, tmp_path: Path
) -> None:
    import torch

    from tellapart_export.families.compact import split_graphs
    from tellapart_export.to_onnx import export_graph
    from tellapart_model.checkpoint import load_checkpoint

    pair = load_checkpoint(toy_checkpoint).model
    torch.manual_seed(1)
    with torch.no_grad():
        for part in (pair.bridge, pair.pool):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    with staged_bundle(tmp_path / "float") as scratch, open_bundle(toy_bundle) as before:
        files: dict[str, bytes | Path] = {name: before.path(name) for name in before.manifest.files}
        write_bundle(scratch, before.manifest, files)
        export_graph(split_graphs(pair)[0], scratch / "vision.onnx")
        write_bundle(scratch, before.manifest)
    given = options(drawn, captions=drawn / "captions.jsonl", split="val", keep_float=(), scheme="universal")
    quantize_bundle(tmp_path / "float", tmp_path / "int8", given)
    pixels = np.random.default_rng(3).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    assert np.array_equal(feature_session(int8_bundle)(pixels), feature_session(tmp_path / "int8")(pixels))


def test_the_first_divergence_names_photo_token_and_both_ids() -> None:
    names, said = ["a", "b", "c"], [(5, 6), (7, 8), (9,)]
    assert find_divergence(names, said, said, end_id=3) is None
    found = find_divergence(names, said, [(5, 6), (7, 9), (1,)], end_id=3)
    assert found == {"photo": 2, "token": 2, "reference": 8, "int8": 9, "name": "b"}
    shorter = find_divergence(names, said, [(5, 6), (7, 8), ()], end_id=3)
    assert shorter == {"photo": 3, "token": 1, "reference": 9, "int8": 3, "name": "c"}
    longer = find_divergence(names, said, [(5, 6, 4), (7, 8), ()], end_id=3)
    assert longer == {"photo": 1, "token": 3, "reference": 3, "int8": 4, "name": "a"}


def test_over_budget_leaves_nothing(
    toy_bundle: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(drawn, scheme="weights", budget=dataclasses.replace(ANY, max_mib=0.1))
    with pytest.raises(BudgetError, match=r"MiB, above 0\.1"):
        quantize_bundle(toy_bundle, tmp_path / "out", given)
    command = ["quantize", str(toy_bundle), "--out", str(tmp_path / "out"), "--images", str(drawn / "photos")]
    command += ["--calibration-limit", "2", "--check-images", "2", "--scheme", "weights"]
    assert main([*command, "--min-agreement", "1.1"]) == 1
    assert "--min-agreement" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--min-agreement", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["scheme"] == "weights"
    assert main([*command, "--scheme", "int3"]) == 2


def test_a_quantized_bundle_is_not_quantized_again(int8_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8 already"):
        quantize_bundle(int8_bundle, tmp_path / "out", options(drawn))


def test_a_missing_block_is_named(toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"blocks\.99"):
        quantize_bundle(toy_bundle, tmp_path / "out", options(drawn, keep_float=("blocks.99",)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda report: report.update(token_agreement=0.8999), "agreement 0.8999"),
        (lambda report: report["retrieval"]["text_to_image"]["r10"].update(int8=69.4), "fell by 0.60 points"),
        (lambda report: report["size_mib"].update(int8=30.5), "30.50 MiB"),
        (lambda report: report.update(token_agreement=float("nan")), "agreement"),
    ],
)
def test_each_promise_is_judged(change: Callable[[dict[str, object]], None], words: str) -> None:
    report: dict[str, object] = {
        "token_agreement": 0.9,
        "size_mib": {"reference": 80.0, "int8": 30.0},
        "retrieval": {"text_to_image": {"r10": {"reference": 70.0, "int8": 69.5}}},
    }
    budget = Budget(max_mib=30)
    check_budget(report, budget)  # everything just within
    change(report)
    with pytest.raises(BudgetError, match=words):
        check_budget(report, budget)


def test_photos_are_the_same_from_folder_and_tar(drawn: Path) -> None:
    with Photos(drawn / "photos") as folder, Photos(drawn / "photos.tar") as tar:
        assert folder.names == tar.names
        assert len(tar.names) == 24
        assert np.array_equal(folder.read("07.png"), tar.read("07.png"))
        with pytest.raises(DataError, match="other"):
            tar.read("other.png")
    with pytest.raises(DataError, match="expected a folder"):
        Photos(drawn / "captions.jsonl")
    (drawn / "empty").mkdir()
    with pytest.raises(DataError, match="no photo inside"):
        Photos(drawn / "empty")


def test_names_are_spread_evenly() -> None:
    assert spread(list("abcdefgh"), 3) == ["a", "c", "f"]
    assert spread(list("abc"), 9) == ["a", "b", "c"]


def test_captions_are_read_by_split(drawn: Path, tmp_path: Path) -> None:
    assert len(read_captions(drawn / "captions.jsonl", split="val")) == 8
    with pytest.raises(DataError, match="'test'"):
        read_captions(drawn / "captions.jsonl", split="test")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"image": "a", "captions": ["x"]}\n{"image": "b"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_captions(bad)


def test_a_vision_transformer_that_is_no_retriever_in_integers(drawn: Path, tmp_path: Path) -> None:
    from tellapart_export.build import ExportOptions, export_bundle
    from toy_families import make_vit_gpt2

    checkpoint = make_vit_gpt2(tmp_path / "checkpoint")
    export_bundle(checkpoint, tmp_path / "fp32", ExportOptions(images=drawn / "photos", limit=4))
    given = options(drawn, scheme="dynamic")
    manifest = quantize_bundle(tmp_path / "fp32", tmp_path / "int8", given)
    assert manifest.scheme == "dynamic"
    report = manifest.metrics["quantization"]
    # Whole bytes times whole bytes: without 8-bit dot products sums overflow, and captions are anything.
    assert report["token_agreement"] > (0.5 if FAST_INT8.intersection(examine_machine().cpu_flags) else 0)
    assert "mean_image_cosine" not in report
    import onnx

    graph = onnx.load_model(tmp_path / "int8" / "vision.onnx")
    assert "MatMulInteger" in {node.op_type for node in graph.graph.node}
    with Captioner.open(tmp_path / "int8") as captioner:
        assert captioner.caption(drawn / "photos" / "00.png").token_ids
