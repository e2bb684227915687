"""Bundles without a trunk of convolutions, that only caption or only embed: their weights become 8 bits."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("transformers")

from tellapart import Captioner, Retriever
from tellapart.bundle import open_bundle
from tellapart.errors import BudgetError
from tellapart_export.build import export_bundle
from tellapart_quantization.build import QuantizeOptions, quantize_bundle
from tellapart_quantization.report import Budget
from toy_families import make_blip, make_clip, make_smolvlm

pytestmark = pytest.mark.train
SAMPLES = Path(__file__).parents[2] / "samples" / "photos"
SCHEMES = ["vnni", "weights"] + (["openvino"] if importlib.util.find_spec("nncf") else [])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.mktemp("kinds")
    for name, make in (("blip", make_blip), ("clip", make_clip), ("smolvlm", make_smolvlm)):
        export_bundle(make(base / f"{name}-checkpoint"), base / name)
    return base


@pytest.mark.parametrize(
    ("family", "scheme"),
    [*itertools.product(["blip", "clip", "smolvlm"], SCHEMES), ("smolvlm", "universal")],
)
def test_weights_become_small_and_the_rest_is_measured(
    family: str, scheme: str, made: Any, tmp_path: Path
) -> None:
    budget = Budget(min_agreement=0.5)
    options = QuantizeOptions(
        images=SAMPLES, scheme=scheme, calibration_limit=2, check_images=6, budget=budget
    )
    manifest = quantize_bundle(made / family, tmp_path / "out", options)
    report = manifest.metrics["quantization"]
    assert (manifest.precision, report["calibrated_on"]) == ("mixed", 0)
    with open_bundle(made / family) as before:
        sizes = {name: entry.bytes for name, entry in before.manifest.files.items()}
    for name, entry in manifest.files.items():
        if name.endswith((".onnx", ".bin")):
            assert entry.bytes < 0.75 * sizes[name.replace(".bin", ".onnx")]
    photo = sorted(SAMPLES.iterdir())[0]
    if family != "clip":
        assert report["token_agreement"] >= 0.5
        assert "mean_image_cosine" not in report
        with Captioner.open(tmp_path / "out") as captioner:
            assert captioner.caption(photo).token_ids
    else:
        assert report["mean_image_cosine"] > 0.95
        assert "token_agreement" not in report
        with Retriever.open(tmp_path / "out") as retriever:
            assert retriever.embed_images([photo]).shape == (1, 12)


def test_the_gate_stands_for_a_captioner_alone(made: Any, tmp_path: Path) -> None:
    options = QuantizeOptions(
        images=SAMPLES, calibration_limit=2, check_images=6, budget=Budget(min_agreement=1.01)
    )
    with pytest.raises(BudgetError, match="token agreement"):
        quantize_bundle(made / "blip", tmp_path / "out", options)
    assert not list(tmp_path.iterdir())
