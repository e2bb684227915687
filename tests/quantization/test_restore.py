"""A bundle, float or INT8, becomes a checkpoint that says what the bundle says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from PIL import Image  # noqa: E402

from tellapart import Captioner  # noqa: E402
from tellapart.errors import CheckpointError  # noqa: E402
from tellapart_export.build import export_bundle  # noqa: E402
from tellapart_export.restore import main, restore_checkpoint  # noqa: E402
from tellapart_model.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from tellapart_model.config import load_config, to_json  # noqa: E402
from tellapart_quantization.build import QuantizeOptions, quantize_bundle  # noqa: E402
from tellapart_quantization.report import Budget  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(12):
        base = draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(base).resize((32, 32)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def pair(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint whose weights all differ, as trained ones do, and its float bundle."""
    root = tmp_path_factory.mktemp("pair")
    loaded, draw = load_checkpoint(toy_checkpoint), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if parameter.ndim == 1 and not name.startswith("trunk."):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    save_checkpoint(root / "checkpoint", loaded.model, vocabulary=loaded.vocabulary)
    export_bundle(root / "checkpoint", root / "bundle")
    return root / "checkpoint", root / "bundle"


def test_a_float_bundle_gives_back_its_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = pair
    restore_checkpoint(bundle, tmp_path / "back", config=checkpoint / "config.json")
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "back")
    assert after.vocabulary == before.vocabulary
    pixels = torch.randint(0, 256, (2, before.config.image_px, before.config.image_px, 3), dtype=torch.uint8)
    ids = torch.tensor([[2, 9, 7, 3]])
    with torch.inference_mode():
        for ours, theirs in zip(after.model(pixels), before.model(pixels), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after.model.embed_text(ids), before.model.embed_text(ids))


@pytest.mark.long
def test_an_int8_bundle_gives_back_what_its_bytes_stand_for(
    pair: tuple[Path, Path], photos: Path, tmp_path: Path
) -> None:
    checkpoint, bundle = pair
    budget = Budget(min_agreement=0.0, max_recall_drop=100.0)
    options = QuantizeOptions(
        images=photos, scheme="weights", calibration_limit=8, check_images=4, budget=budget
    )
    quantize_bundle(bundle, tmp_path / "int8", options=options)
    command = [str(tmp_path / "int8"), "--out", str(tmp_path / "back"), "--config"]
    assert main([*command, str(checkpoint / "config.json")]) == 0
    network = load_checkpoint(tmp_path / "back").model
    # Rows of the toy's bridge are long enough for blocks; those of its text tower are not and stay float.
    assert not torch.equal(
        network.bridge.reduce.weight, load_checkpoint(checkpoint).model.bridge.reduce.weight
    )
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(photos.iterdir())])
    with Captioner.open(tmp_path / "int8") as captioner, torch.inference_mode():
        rows = network.embed_features(network.features(torch.from_numpy(pixels))).numpy()
        assert float((rows * captioner.retriever.embed_images(list(pixels))).sum(axis=1).min()) > 0.9999


def test_another_architecture_is_refused(toy_checkpoint: Path, toy_bundle: Path, tmp_path: Path) -> None:
    wider = dataclasses.replace(load_config(toy_checkpoint / "config.json"), layers=3)
    (tmp_path / "config.json").write_text(to_json(wider))
    with pytest.raises(CheckpointError, match=r"bridge\.keys_values\.weight has shape"):
        restore_checkpoint(toy_bundle, tmp_path / "back", config=tmp_path / "config.json")
    assert not (tmp_path / "back").exists()
