"""A checkpoint on its way to a device bundle: the whole walk in one function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np

from tellapart._version import __version__
from tellapart.backends import TARGET_OF, Session, open_session
from tellapart.backends.coreml import load_coremltools
from tellapart.bundle import Bundle, open_bundle, staged_bundle, write_bundle
from tellapart.commands.progress import Progress
from tellapart.doctor import machine_facts
from tellapart.errors import UsageError
from tellapart.manifest import Decoding, GraphSpec, Manifest
from tellapart.photos import Photos, read_captions, spread
from tellapart.plan import make_plan
from tellapart.report_page import REPORT_NAME, report_page
from tellapart.tokenizer import Tokenizer
from tellapart.types import DecodeOptions, PixelArray, RuntimeOptions
from tellapart_export.families import open_checkpoint
from tellapart_export.fixed_shapes import window_of
from tellapart_export.hugging_face import fetch_checkpoint
from tellapart_export.parity import (
    FLOAT32,
    GraphParity,
    TokenParity,
    Tolerance,
    check_graph,
    check_rows,
    check_tokens,
    feeds_for,
)
from tellapart_export.pictures import drawn_pictures
from tellapart_export.prove_coreml import prove_packages
from tellapart_export.subject import Subject
from tellapart_export.to_coreml import coreml_spec, write_coreml
from tellapart_export.to_npu import COMMAND, UNPROVED, npu_spec, write_npu
from tellapart_export.to_onnx import export_graph
from tellapart_export.to_openvino import convert_graph, load_openvino, openvino_spec

NPU = "openvino-npu"
"""Graphs for OpenVINO without free axes; in the manifest their target is "openvino"."""

TARGETS = ("onnx", "openvino", NPU, "coreml")
"""Targets that this version can write; packages for Core ML cannot be run here, see `prove_coreml`."""

Opener = Callable[[str], Session]
"""A session of a role."""

DRAWN_PHOTOS = 8
"""Pictures from a random generator that stand in where no photos are given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to export to and what to prove it on."""

    targets: tuple[str, ...] = ("onnx",)
    name: str = ""
    """Name in the manifest; "" takes that of the checkpoint, or of our own pair."""

    images: Path | None = None
    """Folder or tar of photos for token parity; None draws pictures instead, and the report says so."""

    captions: Path | None = None
    """JSON lines that say which photo is in which split; only needed with `split`."""

    split: str | None = None
    """Only photos of this split."""

    limit: int = 200
    """Most photos."""

    beams: int | None = None
    """Beams of the bundle unless its user asks otherwise; None is as the checkpoint says, 3 for our own."""

    length_penalty: float | None = None
    """Likewise: exponent of the length by which a hypothesis's log-probability is divided."""

    rerank: float | None = None
    """Likewise: weight of the retriever in choosing among the beams."""

    max_new_tokens: int | None = None
    """Likewise: most pieces of a caption."""

    prompt: str = ""
    """What a network that is asked a question is asked with every picture; "" is its family's own."""

    card: Path | None = None
    """Model card to put in; a short one is written without it."""

    overwrite: bool = False
    """Replace a bundle that is there."""

    progress: bool = False
    """Show on stderr how many photos are captioned alike."""

    def __post_init__(self) -> None:
        """Refuse what this version cannot do."""
        for target in self.targets:
            if target not in TARGETS:
                raise UsageError(f"target {target!r} is not known; this version exports {', '.join(TARGETS)}")
        if len(set(self.targets)) != len(self.targets):
            raise UsageError(f"a target is named twice in {', '.join(self.targets)}")
        if {"openvino", NPU} <= set(self.targets):
            raise UsageError(
                f"openvino and {NPU} are the same graphs with free and with fixed shapes, and a bundle has "
                "one of them; export two bundles"
            )
        DecodeOptions(
            beams=self.beams,
            length_penalty=self.length_penalty,
            rerank=self.rerank,
            max_new_tokens=self.max_new_tokens,
        )  # refuses what nobody could decode with
        if not self.targets or self.limit < 1:
            raise UsageError("at least one target and a limit of at least 1 are needed")
        if (self.split is None) != (self.captions is None):
            raise UsageError(
                "a split needs the captions file that tells who is in it, and the other way round"
            )


def export_bundle(checkpoint: str | Path, out: Path, options: ExportOptions | None = None) -> Manifest:
    """Export, prove equal, pack; a failure at any point leaves nothing at `out`.

    Args:
        checkpoint: a folder, ours or as Hugging Face's libraries write it, or "owner/name" on the hub.
        out: the bundle to make, a folder or a ".zip".
        options: targets and photos for the proof.

    Returns:
        The manifest, its `parity` holding what was measured.

    Raises:
        CheckpointError: no checkpoint there, damaged, or of an unknown architecture.
        ParityError: a graph is not the network.
        UsageError: options that do not go with the checkpoint.
        BundleError: `out` cannot be written.
    """
    options = options or ExportOptions()
    with staged_bundle(out, overwrite=options.overwrite) as scratch:
        if {"openvino", NPU} & set(options.targets):
            load_openvino()  # now, before minutes of work find out
        if "coreml" in options.targets:
            load_coremltools()
        subject = open_checkpoint(fetch_checkpoint(checkpoint), options.prompt)
        manifest = _describe(subject, options, checkpoint=str(checkpoint))
        for source in subject.graphs:
            if set(options.targets) != {"coreml"}:
                export_graph(source, scratch / source.spec.file)
            alone = dataclasses.replace(subject, graphs=(source,))
            if NPU in options.targets:
                [spec] = _specs(alone, NPU, manifest.decoding)
                write_npu(source, scratch / source.spec.file, spec, scratch / spec.file)
            _convert(source.spec, scratch, options.targets)
            if "coreml" in options.targets:
                [spec] = _specs(alone, "coreml", manifest.decoding)
                write_coreml(source, spec, scratch / spec.file)
        card = options.card.read_bytes() if options.card else _card(subject, manifest).encode("utf-8")
        files: dict[str, bytes | Path] = {**subject.files, "MODEL_CARD.md": card}
        manifest = write_bundle(scratch, manifest, files)
        parity = _prove(subject, scratch, options)
        manifest = dataclasses.replace(manifest, parity=parity)
        return write_bundle(scratch, manifest, {REPORT_NAME: report_page(manifest).encode("utf-8")})


def _convert(spec: GraphSpec, scratch: Path, targets: tuple[str, ...]) -> None:
    """Write one graph for the other targets; the ONNX file goes where nobody asked for it."""
    if "openvino" in targets:
        convert_graph(scratch / spec.file, spec, scratch / openvino_spec(spec).file)
    if "onnx" not in targets and (scratch / spec.file).is_file():
        (scratch / spec.file).unlink()


def _specs(subject: Subject, target: str, decoding: Decoding) -> tuple[GraphSpec, ...]:
    specs = tuple(source.spec for source in subject.graphs)
    if target in ("coreml", NPU):
        window, tokens = window_of(subject, decoding), subject.vocabulary.max_text_tokens
        page = coreml_spec if target == "coreml" else npu_spec
        return tuple(page(spec, window=window, tokens=tokens) for spec in specs)
    return specs if target == "onnx" else tuple(map(openvino_spec, specs))


def _describe(subject: Subject, options: ExportOptions, *, checkpoint: str) -> Manifest:
    # A hub name ends in the model's, a folder in what its owner calls it; ours are all called "checkpoint".
    ours = subject.family == "compact"
    decoding = _decoding(subject, options)
    return Manifest(
        name=options.name or ("tellapart-compact" if ours else Path(checkpoint).resolve().name),
        kind=subject.kind,
        precision="float32",
        scheme="",
        preprocessing=subject.preprocessing,
        vocabulary=subject.vocabulary,
        decoding=decoding,
        graphs=tuple(spec for target in options.targets for spec in _specs(subject, target, decoding)),
        files={},
        source={
            "checkpoint_sha256": subject.checkpoint_sha256,
            "family": subject.family,
            **subject.source,
            "exporter": f"tellapart {__version__}",
        },
        licence=subject.licence,
    )


def _decoding(subject: Subject, options: ExportOptions) -> Decoding:
    """The checkpoint's defaults, and the user's over them."""
    chosen: dict[str, Any] = {
        name: value
        for name in ("beams", "length_penalty", "rerank", "max_new_tokens")
        if (value := getattr(options, name)) is not None
    }
    if chosen and "captioner" not in subject.kind:
        raise UsageError(
            f"{', '.join(chosen)} shape captions, and {subject.family} makes none; leave them out"
        )
    if chosen.get("rerank") and "retriever" not in subject.kind:
        raise UsageError(
            f"rerank needs a retriever in the bundle, and {subject.family} has none; leave it out"
        )
    if chosen.get("max_new_tokens", 0) > subject.positions > 0:
        raise UsageError(
            f"max_new_tokens {chosen['max_new_tokens']} is more than the {subject.positions} that the "
            f"decoder has "
            "room for"
        )
    decoding = dataclasses.replace(subject.decoding, **chosen)
    return dataclasses.replace(decoding, min_new_tokens=min(decoding.min_new_tokens, decoding.max_new_tokens))


def _prove(subject: Subject, scratch: Path, options: ExportOptions) -> dict[str, Any]:
    """The manifest's `parity` section, or a ParityError; further targets lie in it under their names."""
    first, *others = options.targets
    report = {"against": "torch float32", "target": first, **subject.remarks, "machine": machine_facts()}
    with open_bundle(scratch) as bundle:
        report |= _prove_target(subject, bundle, first, options)
        for target in others:
            report[target] = _prove_target(subject, bundle, target, options)
    return report


def _prove_target(subject: Subject, bundle: Bundle, target: str, options: ExportOptions) -> dict[str, Any]:
    if target == "coreml":

        def prove(subject: Subject, opener: Opener, tolerance: Tolerance) -> dict[str, Any]:
            return _prove_sessions(subject, bundle, options, opener, tolerance)

        return prove_packages(subject, bundle, prove)
    device: dict[str, Any] = {}
    if target == NPU:
        window = window_of(subject, bundle.manifest.decoding)
        subject = dataclasses.replace(subject, positions=window - 1)
        target, device = "openvino", {"device": UNPROVED, "device_command": COMMAND}
    backend = next(name for name, reads in TARGET_OF.items() if reads == target)
    runtime = RuntimeOptions(backend=cast(Any, backend))
    return device | _prove_sessions(
        subject, bundle, options, lambda role: open_session(bundle, role, runtime), FLOAT32
    )


def _prove_sessions(
    subject: Subject, bundle: Bundle, options: ExportOptions, opener: Opener, tolerance: Tolerance
) -> dict[str, Any]:
    report: dict[str, Any] = {"graphs": {}}
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for source in subject.graphs:
            role = source.spec.role
            sessions[role] = opener(role)
            stack.callback(sessions[role].close)
        page = bundle.manifest.preprocessing
        drawn = drawn_pictures(page.image_px, DRAWN_PHOTOS)
        for source in subject.graphs:
            feeds = feeds_for(subject, source, drawn)
            for entry in check_graph(source, sessions[source.spec.role], feeds, tolerance=tolerance):
                report["graphs"][entry.output] = _entry(entry)
        batches: Iterator[PixelArray] = iter([drawn])
        names: list[str] = []
        report["photos"] = "drawn at random, as none were given"
        if options.images is not None:
            photos = stack.enter_context(Photos(options.images))
            names = _choose(photos, options)
            found = photos.batches(names, page, batch_size=8)
            batches = (batch.astype(np.uint8, copy=False) for batch in found)
            report["photos"] = options.images.name + (f", split {options.split}" if options.split else "")
        if "captioner" in subject.kind:
            plain = DecodeOptions(beams=1, min_new_tokens=0, no_repeat_ngram=0)
            plan = make_plan(plain, bundle.manifest.decoding, Tokenizer.from_bundle(bundle))
            total = len(names) or DRAWN_PHOTOS
            progress = stack.enter_context(Progress(total, quiet=not options.progress))

            def watch(tally: TokenParity) -> None:
                progress.note = f"{tally.equal} alike, logits within {tally.max_logit_error:.1e}"
                progress.at(tally.photos, total)

            tokens = check_tokens(
                subject,
                sessions["vision"],
                sessions["decoder"],
                batches,
                rules=plan.rules,
                tolerance=tolerance,
                watch=watch,
            )
            report["greedy_tokens_equal"] = tokens.equal
            report["greedy_draws"] = tokens.draws
            if not tolerance.exact:
                report["greedy_tokens_other"] = tokens.others
            report["greedy_tokens_compared"] = tokens.tokens
            report["greedy_first_divergence"] = tokens.first_divergence and tokens.first_divergence.to_fields(
                names
            )
            report["max_logit_error"] = tokens.max_logit_error
            batches = iter([drawn])  # photos are read once; rows are compared on the drawn ones then
        if "retriever" in subject.kind:
            rows = check_rows(subject, sessions["vision"], sessions["text"], batches, tolerance=tolerance)
            report["embeddings"] = {name: _entry(entry) for name, entry in rows.items()}
    return report


def _entry(found: GraphParity) -> dict[str, float]:
    return {"max_abs": found.max_abs, "mean_abs": found.mean_abs, "cosine": found.cosine}


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


def _card(subject: Subject, manifest: Manifest) -> str:
    what = {"captioner": "Captions", "retriever": "Image-text embeddings"}
    return (
        f"# {manifest.name}\n\n"
        f"{' and '.join(what[kind] for kind in subject.kind)} of one vision pass at "
        f"{manifest.preprocessing.image_px} px; family {subject.family}, {subject.parameters:,} parameters.\n"
        f"Exported from the checkpoint {subject.checkpoint_sha256}"
        f"{', licence ' + subject.licence if subject.licence else ''}.\n"
    )
