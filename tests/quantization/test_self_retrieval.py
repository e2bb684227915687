"""INT8 captions on the bags of a benchmark: scored as `truematch run` scores them, and a gate that holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from PIL import Image

from tellapart.bundle import open_bundle
from tellapart.cli import main
from tellapart.errors import BudgetError, BundleError, DataError, UsageError
from tellapart.truematch import read_benchmark, write_benchmark
from tellapart.truematch_images import BenchmarkImages
from tellapart_quantization.build import QuantizeOptions, quantize_bundle
from tellapart_quantization.report import Budget, check_budget
from tellapart_quantization.self_retrieval import compare_self_retrieval, recall_drop

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos` with 18 noisy 32 px photos, and `bench` with bags of the first 12."""
    root, draw = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    (root / "photos").mkdir()
    names = [f"{index:02}.png" for index in range(18)]
    for name in names:
        noise = draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((32, 32)).save(root / "photos" / name)
    bags = {3: [names[first : first + 3] for first in range(0, 12, 3)], 5: [names[0:5], names[5:10]]}
    write_benchmark(root / "bench", bags=bags)
    return root


def _options(drawn: Path, **changes: Any) -> QuantizeOptions:
    given: dict[str, Any] = {
        "images": drawn / "photos", "calibration_limit": 4, "check_images": 2, "keep_float": (),
        "benchmark": drawn / "bench", "benchmark_images": drawn / "photos",
        "budget": Budget(min_agreement=0.0, max_recall_drop=100.0),
    }  # fmt: skip
    return QuantizeOptions(**{**given, **changes})


@pytest.fixture(scope="module")
def int8_bundle(toy_bundle: Path, drawn: Path) -> Path:
    quantize_bundle(toy_bundle, drawn / "int8", _options(drawn))
    return drawn / "int8"


def test_the_bundle_tells_what_truematch_finds(
    toy_bundle: Path, int8_bundle: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_bundle(int8_bundle) as made:
        report = made.manifest.metrics["quantization"]["self_retrieval"]
    wanted = {}
    for key, model in (("reference", toy_bundle), ("int8", int8_bundle)):
        command = ["truematch", "run", str(drawn / "bench"), "--images", str(drawn / "photos"), "--json"]
        assert main([*command, "--model", str(model), "--scorer", str(toy_bundle), "--threads", "1"]) == 0
        wanted[key] = json.loads(capsys.readouterr().out)
    assert list(report["bags"]) == ["3", "5"]
    for size, found in report["bags"].items():
        for key, run in wanted.items():
            assert found[key] == pytest.approx(100 * run["bags"][size]["recall_at_1"], abs=0.01)
            interval = [100 * end for end in run["bags"][size]["ci95"]]
            assert found[f"{key}_ci95"] == pytest.approx(interval, abs=0.01)
        assert found["drop"] == pytest.approx(found["reference"] - found["int8"], abs=0.011)
        low, high = found["drop_ci95"]
        assert low <= found["drop"] <= high
        assert (found["bags"], found["images"]) == {"3": (4, 12), "5": (2, 10)}[size]
    assert report["benchmark"]["sha256"] == wanted["int8"]["benchmark"]["sha256"]
    assert report["scorer"]["sha256"] == wanted["reference"]["model"]["sha256"]
    assert report["captions"] == 12
    means = [np.mean([found[key] for found in report["bags"].values()]) for key in ("reference", "int8")]
    assert recall_drop(report) == pytest.approx(means[0] - means[1], abs=0.011)


def test_a_bundle_loses_nothing_against_itself(toy_bundle: Path, int8_bundle: Path, drawn: Path) -> None:
    benchmark = read_benchmark(drawn / "bench").limited(1)
    with BenchmarkImages(drawn / "photos") as images:
        report = compare_self_retrieval(toy_bundle, toy_bundle, benchmark, images, scorer=int8_bundle)
    assert report["captions_equal"] == 1.0
    assert recall_drop(report) == 0.0
    assert [found["drop_ci95"] for found in report["bags"].values()] == [[0.0, 0.0], [0.0, 0.0]]
    assert [found["images"] for found in report["bags"].values()] == [3, 5]
    with open_bundle(int8_bundle) as judge:
        assert report["scorer"] == {"name": judge.manifest.name, "sha256": judge.sha256}


def test_the_gate_is_the_mean_over_sizes() -> None:
    report: dict[str, Any] = {"token_agreement": 0.95, "size_mib": {"reference": 80.0, "int8": 20.0}}
    report["self_retrieval"] = {"recall_at_1": {"reference": 60.0, "int8": 59.5}}
    check_budget(report, Budget())
    report["self_retrieval"]["recall_at_1"]["int8"] = 60.4  # better is fine
    check_budget(report, Budget())
    for bad in (59.49, float("nan")):
        report["self_retrieval"]["recall_at_1"]["int8"] = bad
        with pytest.raises(BudgetError, match=r"R@1 on bags fell by .* more than 0\.5"):
            check_budget(report, Budget())


def test_over_budget_exits_1_and_leaves_nothing(
    toy_bundle: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "quantize", str(toy_bundle), "--out", str(tmp_path / "out"), "--images", str(drawn / "photos"),
        "--calibration-limit", "2", "--check-images", "2", "--scheme", "weights", "--min-agreement", "0",
        "--benchmark", str(drawn / "bench"), "--benchmark-images", str(drawn / "photos"), "--limit-bags", "1",
    ]  # fmt: skip
    assert main([*command, "--max-recall-drop", "-101"]) == 1
    assert "R@1 on bags fell by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--max-recall-drop", "100"]) == 0
    report = json.loads(capsys.readouterr().out)["metrics"]["self_retrieval"]
    assert [found["bags"] for found in report["bags"].values()] == [1, 1]


def test_what_cannot_be_compared_is_refused_before_any_work(
    toy_bundle: Path, drawn: Path, tmp_path: Path
) -> None:
    said: list[str] = []

    def refused(error: type[Exception], words: str, **changes: Any) -> None:
        with pytest.raises(error, match=words):
            quantize_bundle(toy_bundle, tmp_path / "out", _options(drawn, **changes), say=said.append)

    refused(UsageError, "--benchmark-images is of use only", benchmark=None)
    refused(UsageError, "at least one bag", limit_bags=0)
    refused(DataError, "no bags", benchmark=drawn / "photos")
    (tmp_path / "few").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "few" / "00.png")
    refused(DataError, "11 of 12 photos are missing", benchmark_images=tmp_path / "few")
    refused(BundleError, "photos", scorer=drawn / "photos")
    assert said == []
    assert [path.name for path in tmp_path.iterdir()] == ["few"]


def test_no_photo_of_the_bags_is_calibrated_on(toy_bundle: Path, drawn: Path, tmp_path: Path) -> None:
    manifest = quantize_bundle(
        toy_bundle, tmp_path / "out", _options(drawn, scheme="vnni", calibration_limit=99, limit_bags=1)
    )
    # Five photos are in the bags; of the other 13 half at most calibrate.
    assert manifest.metrics["quantization"]["calibrated_on"] == 6
    every = [path.name for path in sorted((drawn / "photos").iterdir())]
    write_benchmark(tmp_path / "all", bags={3: [every[first : first + 3] for first in range(0, 18, 3)]})
    with pytest.raises(DataError, match="in the benchmark; none to calibrate on"):
        quantize_bundle(toy_bundle, tmp_path / "other", _options(drawn, benchmark=tmp_path / "all"))
