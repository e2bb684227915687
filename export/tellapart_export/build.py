"""A checkpoint on its way to a device bundle: the whole walk in one function."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tellapart._version import __version__
from tellapart.backends import open_session
from tellapart.bundle import open_bundle, staged_bundle, write_bundle
from tellapart.errors import CheckpointError, UsageError
from tellapart.manifest import Decoding, Manifest, Preprocessing
from tellapart.photos import Photos, read_captions, spread
from tellapart.types import DecodeOptions, PixelArray, RuntimeOptions
from tellapart_export.graphs import SourceGraph, split_graphs
from tellapart_export.parity import check_graph, check_tokens, random_feeds
from tellapart_export.to_onnx import export_graph
from tellapart_export.vocabulary import write_vocabulary
from tellapart_model.checkpoint import Checkpoint, load_checkpoint
from tellapart_model.compact import CompactPair
from tellapart_model.vision import PIXEL_MEAN, PIXEL_STD

TARGETS = ("onnx",)
"""Targets that this version can write."""

DRAWN_PHOTOS = 8
"""Pictures from a random generator that stand in where no photos are given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export to and what to prove it on."""

    targets: tuple[str, ...] = ("onnx",)
    name: str = "tellapart-compact"

    images: Path | None = None
    """Folder or tar of photos for token parity; None draws pictures instead, and the report says so."""

    captions: Path | None = None
    """JSON lines that say which photo is in which split; only needed with `split`."""

    split: str | None = None
    """Only photos of this split."""

    limit: int = 200
    """Most photos."""

    beams: int = 3
    """Beams of the bundle unless its user asks otherwise."""

    length_penalty: float = 1.0
    """Likewise: exponent of the length by which a hypothesis's log-probability is divided."""

    rerank: float = 0.0
    """Likewise: weight of the retriever in choosing among the beams."""

    card: Path | None = None
    """Model card to put in; a short one is written without it."""

    overwrite: bool = False
    """Replace a bundle that is there."""

    def __post_init__(self) -> None:
        """Refuse what this version cannot do."""
        for target in self.targets:
            if target not in TARGETS:
                raise UsageError(
                    f"target {target!r} comes in a later version; this one exports {', '.join(TARGETS)}"
                )
        DecodeOptions(
            beams=self.beams, length_penalty=self.length_penalty, rerank=self.rerank
        )  # refuses what nobody could decode with
        if not self.targets or self.limit < 1:
            raise UsageError("at least one target and a limit of at least 1 are needed")
        if (self.split is None) != (self.captions is None):
            raise UsageError(
                "a split needs the captions file that tells who is in it, and the other way round"
            )


def export_bundle(checkpoint: Path, out: Path, options: ExportOptions | None = None) -> Manifest:
    """Export, prove equal, pack; a failure at any point leaves nothing at `out`.

    Args:
        checkpoint: folder of a compact pair, as `tellapart train` writes it.
        out: the bundle to make, a folder or a ".zip".
        options: targets and photos for the proof.

    Returns:
        The manifest, its `parity` holding what was measured.

    Raises:
        CheckpointError: no checkpoint there, damaged, or of another architecture.
        ParityError: a graph is not the network.
        BundleError: `out` cannot be written.
    """
    options = options or ExportOptions()
    refuse_strangers(checkpoint)
    loaded = load_checkpoint(checkpoint)
    with staged_bundle(out, overwrite=options.overwrite) as scratch:
        sources = split_graphs(loaded.model)
        for source in sources:
            export_graph(source, scratch / source.spec.file)
        manifest = _describe(loaded, sources, options=options)
        vocabulary, _ = write_vocabulary(
            loaded.vocabulary, max_text_tokens=manifest.vocabulary.max_text_tokens
        )
        card = options.card.read_bytes() if options.card else _card(loaded, manifest).encode("utf-8")
        files: dict[str, bytes | Path] = {manifest.vocabulary.file: vocabulary, "MODEL_CARD.md": card}
        manifest = write_bundle(scratch, manifest, files)
        parity = _prove(loaded.model, sources, scratch, options)
        return write_bundle(scratch, dataclasses.replace(manifest, parity=parity))


def refuse_strangers(checkpoint: Path) -> None:
    """Say in one sentence what a folder is, where it is not a compact pair.

    Raises:
        CheckpointError: the configuration there names another architecture.
    """
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # no folder of ours; `load_checkpoint` says what is missing
    if not isinstance(config, dict):
        return
    kind = config.get("family") or config.get("architecture") or config.get("model_type")
    if kind is not None and kind != "compact":
        raise CheckpointError(
            f"{checkpoint} holds the architecture {kind!r}; this version exports 'compact', the pair that "
            "`tellapart train` makes"
        )


def _describe(loaded: Checkpoint, sources: tuple[SourceGraph, ...], *, options: ExportOptions) -> Manifest:
    config = loaded.config
    _, vocabulary = write_vocabulary(loaded.vocabulary, max_text_tokens=min(40, config.max_length))
    recipe = loaded.extra.get("recipe", "")
    return Manifest(
        name=options.name,
        kind=("captioner", "retriever"),
        precision="float32",
        scheme="",
        preprocessing=Preprocessing(
            image_px=config.image_px, mean=(PIXEL_MEAN,) * 3, std=(PIXEL_STD,) * 3, in_graph=True
        ),
        vocabulary=vocabulary,
        # The decoder has positions for `max_length` tokens, of which the start mark takes one.
        decoding=Decoding(
            max_new_tokens=min(24, config.max_length - 1),
            beams=options.beams,
            length_penalty=options.length_penalty,
            rerank=options.rerank,
        ),
        graphs=tuple(source.spec for source in sources),
        files={},
        source={
            "checkpoint_sha256": loaded.sha256,
            "recipe": str(recipe),
            "architecture": dataclasses.asdict(config),
            "exporter": f"tellapart {__version__}",
        },
        licence="Apache-2.0",
    )


def _prove(
    pair: CompactPair, sources: tuple[SourceGraph, ...], scratch: Path, options: ExportOptions
) -> dict[str, Any]:
    """The manifest's `parity` section, or a ParityError."""
    report: dict[str, Any] = {"against": "torch float32", "graphs": {}}
    with open_bundle(scratch) as bundle:
        sessions = {
            source.spec.role: open_session(bundle, source.spec.role, RuntimeOptions()) for source in sources
        }
        try:
            drawn = next(_drawn(bundle.manifest.preprocessing.image_px, DRAWN_PHOTOS))
            for source in sources:
                role = source.spec.role
                for entry in check_graph(source, sessions[role], random_feeds(pair, role, drawn)):
                    report["graphs"][entry.output] = {
                        "max_abs": entry.max_abs,
                        "mean_abs": entry.mean_abs,
                        "cosine": entry.cosine,
                    }
            longest = bundle.manifest.decoding.max_new_tokens
            vision, decoder = sessions["vision"], sessions["decoder"]
            if options.images is None:
                count = check_tokens(pair, vision, decoder, [drawn], max_new_tokens=longest)
                report["photos"] = "drawn at random, as none were given"
            else:
                with Photos(options.images) as photos:
                    names = _choose(photos, options)
                    batches = photos.batches(names, bundle.manifest.preprocessing, batch_size=8)
                    pixels = (batch.astype(np.uint8, copy=False) for batch in batches)
                    count = check_tokens(pair, vision, decoder, pixels, max_new_tokens=longest)
                report["photos"] = options.images.name + (f", split {options.split}" if options.split else "")
            report["greedy_tokens_equal"] = count
        finally:
            for session in sessions.values():
                session.close()
    return report


def _choose(photos: Photos, options: ExportOptions) -> list[str]:
    names = list(photos.names)
    if options.captions is not None:
        wanted = read_captions(options.captions, split=options.split)
        names = [name for name in names if name in wanted]
        if not names:
            raise UsageError(
                f"no photo of {options.images} is in split {options.split!r} of {options.captions}"
            )
    return spread(names, options.limit)


def _drawn(side: int, count: int) -> Iterator[PixelArray]:
    """Soft blobs rather than noise: noise drives a vision network into a corner that photos never reach."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (count, 5, 5, 3))
    places = np.linspace(0, 3.999, side)
    low, share = places.astype(int), places % 1
    rows = coarse[:, low] * (1 - share)[None, :, None, None] + coarse[:, low + 1] * share[None, :, None, None]
    columns = rows[:, :, low] * (1 - share)[:, None] + rows[:, :, low + 1] * share[:, None]
    yield np.ascontiguousarray(columns.clip(0, 255).astype(np.uint8))


def _card(loaded: Checkpoint, manifest: Manifest) -> str:
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    return (
        f"# {manifest.name}\n\n"
        f"Captions and image-text embeddings from one {loaded.config.trunk} pass at "
        f"{loaded.config.image_px} px; "
        f"{parameters:,} parameters, {loaded.config.vocabulary_size} word pieces.\n"
        f"Exported from the checkpoint {loaded.sha256}.\n"
    )
