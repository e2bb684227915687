"""Fit a bundle's confidence and write it into its manifest, in one reproducible command.

    tellapart calibrate BUNDLE --images images.tar --captions captions.jsonl --check val

The photos are those that training holds back (`--tuning-images`, as the configs say), captioned by the bundle
with its own defaults. A caption's label is its chance of finding its photo among 100: exact over all draws
from the held-back photos, by the bundle's own retriever. Images that are no photos are drawn here, see
`nonphotos`. `--check` names a split that is only measured on: expected calibration error, and how many
non-photos, of kinds never fitted too, reach the threshold that nine of ten photos reach.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.bundle import open_bundle, staged_bundle, write_bundle
from tellapart.captioner import Captioner
from tellapart.confidence import confidence_features, confidence_of
from tellapart.errors import DataError
from tellapart.manifest_confidence import FEATURES, Calibration, Logistic
from tellapart.types import DecodeOptions, ImageInput, RuntimeOptions
from tellapart_training.data import read_captions, split_records
from tellapart_training.images import ImageSource, say_on_stderr
from tellapart_training.nonphotos import FITTED_KINDS, HELD_OUT_KINDS, non_photos
from tellapart_training.reliability import expected_calibration_error, reliability_svg
from tellapart_training.run_folder import write_atomically

FloatArray = npt.NDArray[np.float64]
_AMONG = 100
_KEPT = 0.9
_PHOTO_RIDGE, _HIT_RIDGE = 1e-4, 1e-3
_HIT_FEATURES = ("cosine", "mean_logprob")


@dataclass(frozen=True)
class Seen:
    """Images captioned: features (n, F) in the order of `FEATURES`, unit rows of images, captions (n, d)."""

    features: FloatArray
    image_rows: FloatArray
    text_rows: FloatArray

    def chances(self, among: int) -> FloatArray:
        """Each caption's chance of finding its image among so many, drawn from all; ties are misses."""
        similarity = self.text_rows @ self.image_rows.T
        better = (similarity >= np.diagonal(similarity)[:, None]).sum(axis=1) - 1
        return chance_of_rank_one(better, others=len(similarity) - 1, drawn=among - 1)


def chance_of_rank_one(better: npt.NDArray[np.int64], *, others: int, drawn: int) -> FloatArray:
    """Chance that none of the better ones is among `drawn` of `others` images, drawn without replacement.

    Args:
        better: (n,) how many of the others score as high or higher.
        others: how many there are.
        drawn: how many are drawn, at most `others`.

    Returns:
        (n,) float64 in [0, 1].
    """
    if drawn > others:
        raise DataError(f"{others + 1} photos are too few to find one among {drawn + 1}: hold back more")
    ways = math.comb(others, drawn)
    return np.array([math.comb(others - int(count), drawn) / ways for count in better])


def fit_logistic(
    features: FloatArray, targets: FloatArray, names: Sequence[str], *, ridge: float
) -> Logistic:
    """Maximum likelihood with a small ridge on standardised weights, by Newton's method.

    Args:
        features: (n, F).
        targets: (n,) in [0, 1]; shares count as such.
        names: of the F columns.
        ridge: penalty on the square of each standardised weight, per example.

    Returns:
        The model over features as they are.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    columns = np.column_stack([(features - mean) / spread, np.ones(len(features))])
    penalty = np.diag([ridge * len(features)] * len(names) + [0.0])
    weights = np.zeros(columns.shape[1])
    for _ in range(100):
        chances = 1.0 / (1.0 + np.exp(-np.clip(columns @ weights, -35, 35)))
        slope = columns.T @ (chances - targets) + penalty @ weights
        curve = columns.T @ ((chances * (1 - chances))[:, None] * columns) + penalty
        change = np.linalg.solve(curve + 1e-9 * np.eye(len(weights)), slope)
        weights -= change
        if np.abs(change).max() < 1e-9:
            break
    raw = weights[:-1] / spread
    return Logistic(
        bias=round(float(weights[-1] - raw @ mean), 6),
        weights={name: round(float(value), 6) for name, value in zip(names, raw, strict=True)},
    )


def fit(photos: Seen, others: Seen) -> Calibration:
    """A calibration from held-back photos and images that are no photos."""
    features = np.concatenate([photos.features, others.features])
    is_photo = np.repeat([1.0, 0.0], [len(photos.features), len(others.features)])
    columns = [FEATURES.index(name) for name in _HIT_FEATURES]
    photo = fit_logistic(features, is_photo, FEATURES, ridge=_PHOTO_RIDGE)
    hit = fit_logistic(photos.features[:, columns], photos.chances(_AMONG), _HIT_FEATURES, ridge=_HIT_RIDGE)
    open_ended = Calibration(among=_AMONG, threshold=0.0, photo=photo, hit=hit)
    threshold = math.floor(float(np.quantile(confidences(photos, open_ended), 1 - _KEPT)) * 1e4) / 1e4
    return Calibration(among=_AMONG, threshold=threshold, photo=photo, hit=hit)


def confidences(seen: Seen, calibration: Calibration) -> FloatArray:
    """Confidence of each caption, (n,)."""
    return np.array(
        [confidence_of(dict(zip(FEATURES, row, strict=True)), calibration) for row in seen.features.tolist()]
    )


def caption_all(captioner: Captioner, images: Iterable[ImageInput]) -> Seen:
    """Caption images with the bundle's defaults and keep what a confidence needs."""
    features, image_rows, text_rows = [], [], []
    for image in images:
        view = captioner.look(image)
        caption = captioner.caption(view, options=DecodeOptions(confidence=False))
        text_row = captioner.retriever.embed_texts([caption.text])[0]
        values = confidence_features(caption, view, float(text_row @ view.embedding[0]))
        features.append([values[name] for name in FEATURES])
        image_rows.append(view.embedding[0])
        text_rows.append(text_row)
        if len(features) % 100 == 0:
            say_on_stderr(f"{len(features)} images captioned")
    return Seen(np.array(features), np.array(image_rows, np.float64), np.array(text_rows, np.float64))


def write_confidence(bundle: Path, calibration: Calibration, report: Mapping[str, Any]) -> None:
    """Put the block and `metrics.confidence` into a bundle; all other files stay as they are.

    Raises:
        BundleError: damaged, or the disk refuses; the bundle is then as it was.
    """
    with open_bundle(bundle) as source, staged_bundle(bundle, overwrite=True) as scratch:
        files: dict[str, bytes | Path] = {path: source.path(path) for path in source.manifest.files}
        page = source.manifest.to_fields()
        page["confidence"] = calibration.to_fields()
        page["metrics"] = {**page.get("metrics", {}), "confidence": dict(report)}
        write_bundle(scratch, page, files)


def calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Caption, fit, write; returns the report."""
    source = ImageSource(arguments.images)
    records = list(read_captions(arguments.captions))
    _, held = split_records(
        records, train_splits=arguments.split, tuning_images=arguments.tuning_images, seed=arguments.data_seed
    )
    with Captioner.open(arguments.bundle, runtime=RuntimeOptions(threads=arguments.threads)) as captioner:
        photos = caption_all(captioner, (source.read(record.image) for record in held))
        fitted = non_photos(FITTED_KINDS, each=arguments.non_photos, seed=0)
        calibration = fit(photos, caption_all(captioner, (image for _, image in fitted)))
        report: dict[str, Any] = {"fitted_on": len(held), "among": _AMONG, "threshold": calibration.threshold}
        if arguments.check:
            names = [record.image for record in records if record.split == arguments.check]
            checked = caption_all(captioner, (source.read(name) for name in names))
            found, truth = confidences(checked, calibration), checked.chances(_AMONG)
            report["checked_on"], report["photos"] = arguments.check, len(names)
            report["expected_calibration_error"] = round(expected_calibration_error(found, truth), 4)
            report["mean_confidence"] = round(float(found.mean()), 4)
            report["mean_hit"] = round(float(truth.mean()), 4)
            report["photos_kept"] = round(float((found >= calibration.threshold).mean()), 4)
            passed = {
                kind: float((confidences(seen, calibration) >= calibration.threshold).mean())
                for kind in (*FITTED_KINDS, *HELD_OUT_KINDS)
                for seen in [caption_all(captioner, _images(kind, arguments.non_photos))]
            }
            report["non_photos_passed"] = round(float(np.mean(list(passed.values()))), 4)
            report["non_photos_passed_by_kind"] = {kind: round(share, 4) for kind, share in passed.items()}
            if arguments.svg:
                write_atomically(arguments.svg, reliability_svg(found, truth, title=f"{arguments.check}"))
    write_confidence(arguments.bundle, calibration, report)
    if arguments.report:
        write_atomically(arguments.report, json.dumps(report, indent=1) + "\n")
    return report


def _images(kind: str, each: int) -> Iterable[ImageInput]:
    return (image for _, image in non_photos((kind,), each=each, seed=1))


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog="tellapart calibrate", description="Fit a bundle's confidence.")
    parser.add_argument("bundle", type=Path, help="folder; its manifest is replaced")
    parser.add_argument("--images", type=Path, required=True, help="folder or uncompressed .tar")
    parser.add_argument("--captions", type=Path, required=True, help="captions file: names and splits")
    parser.add_argument("--split", nargs="+", default=["train", "extra"], help="the config's train_splits")
    parser.add_argument("--tuning-images", type=int, default=300, help="the config's data.tuning_images")
    parser.add_argument("--data-seed", type=int, default=0, help="the config's data.seed")
    parser.add_argument("--non-photos", type=int, default=80, metavar="N", help="of each kind")
    parser.add_argument("--check", default="", metavar="SPLIT", help="split to measure on, never to fit on")
    parser.add_argument("--svg", type=Path, help="with --check: reliability diagram to write")
    parser.add_argument("--report", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 done.

    Raises:
        TellapartError: data or a bundle that cannot be used; the bundle is then as it was.
    """
    print(json.dumps(calibrate(build_parser().parse_args(argv)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
