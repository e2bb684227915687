"""Fit how likely people are to say each piece of an image, and put it into a bundle as `presence.bin`.

    tellapart presence BUNDLE --images images.tar --captions captions.jsonl

For each piece that people used of at least `--least` photos, a logistic model over the photo's unit embedding
of whether any of its captions holds it. Photos are those that training learns from; the held-back ones are
measured on only. A trunk knows the photos that it learnt from better than others, so the fit is surer of
itself than it should be: compare its error on held-back photos, which is printed, with that of base rates.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tellapart.bundle import open_bundle, staged_bundle, write_bundle
from tellapart.captioner import Captioner
from tellapart.errors import DataError
from tellapart.presence import PRESENCE_NAME, Presence
from tellapart.tokenizer import Tokenizer
from tellapart.types import RuntimeOptions
from tellapart_training.data import CaptionRecord, read_captions, split_records
from tellapart_training.images import ImageSource, say_on_stderr
from tellapart_training.run_folder import write_atomically

FloatArray = npt.NDArray[np.float32]
_EPOCHS, _BATCH, _RATE = 25, 256, 3e-3
_SURE = 1e-4  # chances of pieces that every photo has, or none, stay this far from 1 and 0

_LEAST_SPREAD = 1e-3  # of one number of a unit embedding; those of the embedded bundle are 0.06


def pieces_said(records: Sequence[CaptionRecord], tokenizer: Tokenizer) -> list[set[int]]:
    """Pieces that any caption of each photo holds, the marks of beginning and end left out."""
    marks = set(tokenizer.encode(""))
    return [
        {piece for text in record.captions for piece in tokenizer.encode(text)} - marks for record in records
    ]


def frequent(said: Sequence[set[int]], *, least: int) -> npt.NDArray[np.int64]:
    """Pieces said of at least so many photos, rising.

    Raises:
        DataError: there is none.
    """
    counts = Counter(piece for pieces in said for piece in pieces)
    found = sorted(piece for piece, count in counts.items() if count >= least)
    if not found:
        raise DataError(
            f"no piece was said of {least} of the {len(said)} photos: give more photos, or lower --least"
        )
    return np.array(found, np.int64)


def table(said: Sequence[set[int]], pieces: npt.NDArray[np.int64]) -> FloatArray:
    """(photos, pieces) float32, 1 where a piece was said."""
    place = {int(piece): column for column, piece in enumerate(pieces)}
    found = np.zeros((len(said), len(pieces)), np.float32)
    for row, photo in enumerate(said):
        found[row, [place[piece] for piece in photo if piece in place]] = 1
    return found


def fit(
    rows: FloatArray, said: FloatArray, pieces: npt.NDArray[np.int64], *, ridge: float, seed: int = 0
) -> Presence:
    """Maximum likelihood with a ridge on the weights of standardised embeddings, by Adam from base rates.

    Args:
        rows: (photos, d) unit embeddings.
        said: (photos, pieces) of 0 and 1.
        pieces: rising ids.
        ridge: half of it on each squared weight, against the nats of one photo.
        seed: of the order of the photos.

    Returns:
        The models over embeddings as they are.
    """
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    # Where all photos are alike, what differs is noise, and its weights would leave the others no bits.
    spread = np.maximum(spread, _LEAST_SPREAD).astype(np.float32)
    inputs, targets = torch.from_numpy((rows - mean) / spread), torch.from_numpy(said)
    weights = torch.zeros(rows.shape[1], len(pieces), requires_grad=True)
    bias = torch.logit(targets.mean(dim=0).clamp(_SURE, 1 - _SURE)).requires_grad_()
    optimiser = torch.optim.Adam([weights, bias], lr=_RATE)
    steps = _EPOCHS * -(-len(rows) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_EPOCHS):
        for batch in torch.split(torch.randperm(len(rows), generator=generator), _BATCH):
            logits = inputs[batch] @ weights + bias
            errors = nn.functional.binary_cross_entropy_with_logits(logits, targets[batch], reduction="none")
            loss = errors.sum(dim=1).mean() + ridge / 2 * weights.square().sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    raw = (weights.detach().numpy() / spread[:, None]).T
    return Presence(pieces, (bias.detach().numpy() - raw @ mean).astype(np.float32), raw)


def nats(log_chances: npt.NDArray[np.float64], said: FloatArray) -> float:
    """Mean over photos of the nats that all pieces, said or not, cost together."""
    chances = np.minimum(np.exp(log_chances), 1 - 1e-12)
    return float(-np.where(said > 0, log_chances, np.log1p(-chances)).sum(axis=1).mean())


def write_presence(bundle: Path, presence: Presence, report: Mapping[str, Any]) -> None:
    """Put the file and `metrics.presence` into a bundle; all other files stay as they are.

    Raises:
        BundleError: damaged, or the disk refuses; the bundle is then as it was.
    """
    with open_bundle(bundle) as source, staged_bundle(bundle, overwrite=True) as scratch:
        files: dict[str, bytes | Path] = {path: source.path(path) for path in source.manifest.files}
        page = source.manifest.to_fields()
        page["metrics"] = {**page.get("metrics", {}), "presence": dict(report)}
        write_bundle(scratch, page, {**files, PRESENCE_NAME: presence.to_bytes()})


def add_presence(arguments: argparse.Namespace) -> dict[str, Any]:
    """Look at the photos, fit, measure, write; returns the report."""
    source = ImageSource(arguments.images)
    train, held = split_records(
        list(read_captions(arguments.captions)),
        train_splits=arguments.split,
        tuning_images=arguments.tuning_images,
        seed=arguments.data_seed,
    )
    with Captioner.open(arguments.bundle, runtime=RuntimeOptions(threads=arguments.threads)) as captioner:
        tokenizer = Tokenizer.from_bundle(captioner.bundle)
        rows = []
        for record in [*train, *held]:
            [row] = captioner.retriever.embed_images([captioner.look(source.read(record.image))])
            rows.append(row)
            if len(rows) % 1000 == 0:
                say_on_stderr(f"{len(rows)} photos seen")
        said = pieces_said([*train, *held], tokenizer)
    seen, photos = np.array(rows, np.float32), len(train)
    pieces = frequent(said[:photos], least=arguments.least)
    targets = table(said, pieces)
    fitted = fit(seen[:photos], targets[:photos], pieces, ridge=arguments.ridge)
    # Measured as it is read back, rounded.
    content = fitted.to_bytes()
    presence = Presence.from_bytes(content, vocabulary_size=tokenizer.vocabulary_size)
    report: dict[str, Any] = {"fitted_on": photos, "pieces": len(pieces), "bytes": len(content)}
    report["nats_fitted"] = round(nats(presence.log_chances(seen[:photos]), targets[:photos]), 3)
    if held:
        rates = np.log(np.clip(targets[:photos].mean(axis=0, dtype=np.float64), _SURE, 1 - _SURE))
        report["nats_held_back"] = round(nats(presence.log_chances(seen[photos:]), targets[photos:]), 3)
        base = np.broadcast_to(rates, (len(held), len(pieces)))
        report["nats_held_back_base_rates"] = round(nats(base, targets[photos:]), 3)
    write_presence(arguments.bundle, presence, report)
    return report


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="tellapart presence", description="Fit how likely people are to say each piece of an image."
    )
    parser.add_argument("bundle", type=Path, help="folder; captioner and retriever, its manifest is replaced")
    parser.add_argument("--images", type=Path, required=True, help="folder or uncompressed .tar")
    parser.add_argument("--captions", type=Path, required=True, help="captions file")
    parser.add_argument("--split", nargs="+", default=["train", "extra"], help="the config's train_splits")
    parser.add_argument("--tuning-images", type=int, default=300, help="the config's data.tuning_images")
    parser.add_argument("--data-seed", type=int, default=0, help="the config's data.seed")
    parser.add_argument("--least", type=int, default=20, metavar="N", help="photos that a piece was said of")
    parser.add_argument("--ridge", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", type=Path, help="JSON file to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 done.

    Raises:
        TellapartError: data or a bundle that cannot be used; the bundle is then as it was.
    """
    arguments = build_parser().parse_args(argv)
    report = json.dumps(add_presence(arguments), indent=1)
    if arguments.report is not None:
        write_atomically(arguments.report, report + "\n")
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
