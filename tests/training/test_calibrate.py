"""Calibration: the exact chance, the fit, the error, the drawn images, and the bundle that is written."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tellapart import Captioner
from tellapart.bundle import open_bundle
from tellapart.confidence import chance
from tellapart.errors import DataError
from tellapart_training.calibrate import chance_of_rank_one, fit_logistic, main
from tellapart_training.nonphotos import FITTED_KINDS, HELD_OUT_KINDS, non_photos
from tellapart_training.reliability import expected_calibration_error, reliability_svg

pytestmark = pytest.mark.train


def test_the_chance_of_rank_one_is_what_draws_show() -> None:
    generator = np.random.default_rng(0)
    better = np.array([0, 1, 4, 9])
    exact = chance_of_rank_one(better, others=12, drawn=5)
    drawn = [generator.permutation(12)[:5].min() for _ in range(20000)]
    # The lowest numbers are the better ones: none of them was drawn where the least drawn is as high.
    assert exact == pytest.approx(
        [np.mean([least >= count for least in drawn]) for count in better], abs=0.02
    )
    with pytest.raises(DataError, match="too few"):
        chance_of_rank_one(better, others=12, drawn=13)


def test_the_fit_finds_the_coefficients_that_made_the_data() -> None:
    generator = np.random.default_rng(1)
    features = generator.normal((3, -50), (0.5, 20), (20000, 2))
    chances = 1 / (1 + np.exp(-(-7.0 + 2.0 * features[:, 0] - 0.04 * features[:, 1])))
    model = fit_logistic(features, (generator.random(20000) < chances) * 1.0, ("a", "b"), ridge=1e-6)
    assert model.bias == pytest.approx(-7.0, abs=0.5)
    assert model.weights == pytest.approx({"a": 2.0, "b": -0.04}, abs=0.12)
    found = [chance(model, {"a": row[0], "b": row[1]}) for row in features[:500]]
    assert found == pytest.approx(chances[:500].tolist(), abs=0.03)


def test_the_calibration_error_is_the_mean_gap() -> None:
    chances, truth = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0])
    assert expected_calibration_error(chances, truth) == pytest.approx((0.45 + 0.05) / 2)
    assert expected_calibration_error(np.array([1.0]), np.array([1.0])) == 0
    with pytest.raises(DataError):
        expected_calibration_error(chances, truth[:3])
    page = reliability_svg(chances, truth, title="<val>")
    assert page.count("<circle") == 2
    assert "&lt;val&gt;" in page


def test_drawn_images_are_the_same_each_time_and_differ_by_seed() -> None:
    kinds = (*FITTED_KINDS, *HELD_OUT_KINDS)
    first, again, other = (list(non_photos(kinds, each=2, seed=seed, side_px=64)) for seed in (3, 3, 4))
    assert [kind for kind, _ in first] == [kind for kind in kinds for _ in range(2)]
    assert all((one == two).all() for (_, one), (_, two) in zip(first, again, strict=True))
    assert {image.shape for _, image in first} == {(64, 64, 3)}
    assert {image.dtype for _, image in first} == {np.dtype(np.uint8)}
    assert any((one != two).any() for (_, one), (_, two) in zip(first, other, strict=True))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from PIL import Image

    generator = np.random.default_rng(2)
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for number in range(125):
        image = np.repeat(np.repeat(generator.integers(0, 256, (2, 2, 3), np.uint8), 8, 0), 8, 1)
        content = io.BytesIO()
        Image.fromarray(image).save(content, "png")
        name = f"{number:03}.png"
        (folder / name).write_bytes(content.getvalue())
        lines.append(
            json.dumps({"image": name, "split": "train", "captions": ["a red field on a blue wall"]})
        )
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_command_writes_the_block_and_nothing_else(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    argv = [str(bundle), "--images", str(photos), "--captions", str(tmp_path / "captions.jsonl")]
    argv += ["--split", "train", "--tuning-images", "110", "--non-photos", "5", "--check", "train"]
    argv += ["--svg", str(tmp_path / "diagram.svg"), "--report", str(tmp_path / "report.json")]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "diagram.svg").read_text().startswith("<svg")
    assert 0 <= report["expected_calibration_error"] <= 0.25
    assert 0.8 <= report["photos_kept"] <= 1
    with open_bundle(bundle) as opened, open_bundle(tiny_bundle) as before:
        assert opened.manifest.files == before.manifest.files
        assert opened.manifest.metrics["confidence"] == report
        block = opened.manifest.confidence
        assert block is not None
        assert (block.among, block.threshold) == (100, report["threshold"])
    with Captioner.open(bundle) as captioner:
        confidence = captioner.caption(photos / "000.png").confidence
        assert confidence is not None
        assert 0 <= confidence <= 1
    text = (bundle / "tellapart.json").read_text()
    assert main(argv) == 0  # fitted again, it is the same
    assert (bundle / "tellapart.json").read_text() == text
    with pytest.raises(DataError, match="too few"):
        main([*argv, "--tuning-images", "50"])
    assert (bundle / "tellapart.json").read_text() == text
