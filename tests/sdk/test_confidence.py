"""Confidence: the formula, the typed "unsure", and what is no photo."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import Caption, Captioner, DecodeOptions, ManifestError, UnsureCaption, UsageError
from tellapart.bundle import open_bundle
from tellapart.cli import main
from tellapart.confidence import chance, confidence_features, confidence_of
from tellapart.manifest import parse_manifest
from tellapart.manifest_confidence import FEATURES, Logistic

Images = dict[str, np.ndarray]
BLOCK: dict[str, Any] = {
    "among": 100,
    "threshold": 0.6,
    "photo": {"bias": 2.0, "weights": {"value_spread": 1.5}},
    "hit": {"bias": 0.5, "weights": {"cosine": 3.0, "mean_logprob": 2.0}},
}


@pytest.fixture
def calibrated(tiny_bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    page = json.loads((folder / "tellapart.json").read_text())
    page["confidence"] = BLOCK
    (folder / "tellapart.json").write_text(json.dumps(page))
    return folder


@pytest.fixture
def captioner(calibrated: Path) -> Iterator[Captioner]:
    with Captioner.open(calibrated) as opened:
        yield opened


def by_hand(captioner: Captioner, image: np.ndarray, caption: Caption) -> float:
    view = captioner.look(image)
    row = captioner.retriever.embed_texts([caption.text])[0].astype(np.float64)
    cosine = float(row @ captioner.retriever.embed_images([image])[0])
    spread = np.mean(np.std(view.cross_kv[1::2].astype(np.float64), axis=3))
    photo = 1 / (1 + math.exp(-(2.0 + 1.5 * spread)))
    return photo / (1 + math.exp(-(0.5 + 3.0 * cosine + 2.0 * caption.mean_logprob)))


@pytest.mark.parametrize("rerank", [0.0, 2.0])
def test_the_confidence_is_the_product_of_two_chances(
    captioner: Captioner, toy_images: Images, rerank: float
) -> None:
    for image in toy_images.values():
        caption = captioner.caption(image, options=DecodeOptions(rerank=rerank))
        assert caption.confidence == pytest.approx(by_hand(captioner, image, caption), abs=1e-5)
        assert caption.elapsed_ms["confidence"] > 0
    assert captioner.caption(image, options=DecodeOptions(confidence=False)).confidence is None


def test_bags_and_batches_carry_it_too(captioner: Captioner, toy_images: Images) -> None:
    names = ["red", "red_blue", "blue"]
    images = [toy_images[name] for name in names]
    many = list(captioner.caption_many(images, batch_size=3))
    assert [entry.confidence for entry in many] == [captioner.caption(image).confidence for image in images]
    for mode in ("plain", "rerank", "contrast"):
        result = captioner.bag(images, mode=mode)  # type: ignore[arg-type]
        for image, caption in zip(images, result.captions, strict=True):
            assert caption.confidence == pytest.approx(by_hand(captioner, image, caption), abs=1e-5)
        unsure = captioner.bag(images, mode=mode, options=DecodeOptions(min_confidence=1.0))  # type: ignore[arg-type]
        assert all(isinstance(caption, UnsureCaption) for caption in unsure.captions)


def test_captions_below_the_least_confidence_are_unsure(captioner: Captioner, toy_images: Images) -> None:
    image = toy_images["red"]
    sure = captioner.caption(image)
    assert type(sure) is Caption
    assert sure.confidence is not None
    for least, kind in ((sure.confidence - 1e-6, Caption), (sure.confidence + 1e-6, UnsureCaption)):
        found = captioner.caption(image, options=DecodeOptions(min_confidence=least))
        assert type(found) is kind
        assert (found.text, found.confidence) == (sure.text, sure.confidence)
    assert type(pickle.loads(pickle.dumps(found))) is UnsureCaption
    threshold = captioner.bundle.manifest.confidence.threshold  # type: ignore[union-attr]
    for entry in toy_images.values():
        found = captioner.caption(entry, options=DecodeOptions(min_confidence="default"))
        assert isinstance(found, UnsureCaption) is (found.confidence < threshold)  # type: ignore[operator]


def test_wishes_that_cannot_be_met_are_refused(
    captioner: Captioner, tiny_bundle: Path, toy_images: Images
) -> None:
    with Captioner.open(tiny_bundle) as plain:
        assert plain.caption(toy_images["red"]).confidence is None
        with pytest.raises(UsageError, match="tellapart calibrate"):
            plain.caption(toy_images["red"], options=DecodeOptions(min_confidence=0.5))
    with pytest.raises(UsageError, match="caption is whole"):
        captioner.stream(toy_images["red"], options=DecodeOptions(min_confidence=0.5))
    with pytest.raises(UsageError, match="confidence=False"):
        DecodeOptions(confidence=False, min_confidence=0.5)
    for bad in (-0.1, 1.1, math.nan, "high"):
        with pytest.raises(UsageError, match="min_confidence"):
            DecodeOptions(min_confidence=bad)  # type: ignore[arg-type]


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda block: block.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("threshold", 1.5), "confidence.threshold must be at most 1"),
        (put("among", 1), "confidence.among"),
        (put("photo", {"bias": 0, "weights": {"value_spred": 1}}), "did you mean 'value_spread'"),
        (put("hit", {"weights": {}}), "confidence.hit.bias is missing"),
        (put("other", 1), "confidence.other is not a known key"),
    ],
)
def test_a_block_that_is_wrong_is_refused(
    calibrated: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    page = json.loads((calibrated / "tellapart.json").read_text())
    change(page["confidence"])
    with pytest.raises(ManifestError, match=message):
        parse_manifest(json.dumps(page))


def test_the_block_is_written_as_it_was_read(calibrated: Path) -> None:
    with open_bundle(calibrated) as bundle:
        text = bundle.manifest.to_json()
        assert parse_manifest(text) == bundle.manifest
        assert json.loads(text)["confidence"] == BLOCK


def test_chances_of_far_out_numbers_stay_chances() -> None:
    model = Logistic(bias=0.0, weights={"cosine": 1e6})
    assert chance(model, {"cosine": 1.0}) == 1.0
    assert chance(model, {"cosine": -1.0}) == 0.0
    assert chance(model, {"cosine": 0.0}) == 0.5


def test_the_command_line_marks_what_is_unsure(
    calibrated: Path, toy_images: Images, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    photo = tmp_path / "red.png"
    Image.fromarray(toy_images["red"]).save(photo)
    argv = ["caption", str(photo), "--model", str(calibrated)]
    assert main([*argv, "--json", "--min-confidence", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["unsure"] is True
    assert 0 < record["confidence"] < 1
    assert record["caption"].startswith("A red")
    assert main([*argv, "--min-confidence", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{photo}: (unsure) A red")
    assert main([*argv, "--min-confidence", "0", "--json"]) == 0
    assert "unsure" not in json.loads(capsys.readouterr().out)
    assert main([*argv, "--sidecar", "txt", "--min-confidence", "1"]) == 0
    assert (tmp_path / "red.txt").read_text().startswith("(unsure) A red")
    assert main([*argv, "--min-confidence", "much"]) == 2


def no_photos() -> dict[str, np.ndarray]:
    """Drawn here, by other hands than those that the fit drew with."""
    from PIL import Image, ImageDraw, ImageFont

    generator = np.random.default_rng(5)
    page = Image.new("RGB", (300, 400), "white")
    text = ImageDraw.Draw(page)
    for line in range(20):
        text.text(
            (12, 8 + 19 * line), "the quick brown fox jumps over a dog", "black", ImageFont.load_default(15)
        )
    drawing = Image.new("RGB", (256, 256), "white")
    pen = ImageDraw.Draw(drawing)
    pen.ellipse((90, 30, 160, 100), outline="black", width=3)
    pen.line((125, 100, 125, 180, 90, 240), fill="black", width=3)
    pen.line((70, 130, 180, 130), fill="black", width=3)
    ramp = np.linspace(20, 230, 224)[:, None, None]
    return {
        "white": np.full((224, 224, 3), 255, np.uint8),
        "black": np.zeros((224, 224, 3), np.uint8),
        "flat": np.full((100, 300, 3), (200, 30, 60), np.uint8),
        "noise": generator.integers(0, 256, (224, 224, 3)).astype(np.uint8),
        "gradient": np.broadcast_to(ramp, (224, 224, 3)).astype(np.uint8),
        "text": np.asarray(page),
        "drawing": np.asarray(drawing),
    }


def test_the_embedded_bundle_is_unsure_of_what_is_no_photo() -> None:
    options = DecodeOptions(min_confidence="default")
    with Captioner.open() as captioner:
        calibration = captioner.bundle.manifest.confidence
        assert calibration is not None
        for name, image in no_photos().items():
            caption = captioner.caption(image, options=options)
            assert isinstance(caption, UnsureCaption), (name, caption)
            assert caption.confidence is not None
            assert caption.confidence < calibration.threshold / 2, (name, caption)


def test_features_are_named_once_and_all_used(captioner: Captioner, toy_images: Images) -> None:
    view = captioner.look(toy_images["red"])
    values = confidence_features(captioner.caption(view), view, 0.25)
    assert tuple(values) == FEATURES
    assert values["cosine"] == 0.25
    assert captioner.bundle.manifest.confidence is not None
    assert 0 < confidence_of(values, captioner.bundle.manifest.confidence) < 1
