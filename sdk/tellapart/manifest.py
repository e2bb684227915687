"""`tellapart.json`: the page in every bundle that says what is inside.

`parse_manifest` turns its bytes into frozen dataclasses and refuses everything that it does not know;
`Manifest.to_json` writes it again. Nothing here touches a disk, a graph or numpy: a manifest is judged
before anything else of the bundle is read. The three sections `metrics`, `parity` and `source` are
reports for people and may hold any JSON; all others are closed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from tellapart.errors import BundleVersionError, ManifestError
from tellapart.manifest_confidence import Calibration, read_confidence
from tellapart.manifest_fields import Section, check_paths, load_json, manifest_error

FORMAT_VERSION = 1
"""The newest manifest format that this version reads, and the one that it writes."""

MANIFEST_NAME = "tellapart.json"
"""File name of the manifest at the top of a bundle."""

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""A manifest larger than this is refused unread; real ones are a few kB."""

KINDS = {"captioner": ("vision", "decoder"), "retriever": ("vision", "text")}
"""What a bundle can be, and the graph roles that each needs."""

_SEEN = {"captioner": "cross_kv", "retriever": "embedding"}  # what each needs of the vision graph

ROLES = ("vision", "decoder", "text")
TARGETS = ("onnx", "openvino", "coreml")
RESIZES = ("squash", "crop")
BYTE_PAIRS = ("byte_bpe", "digit_bpe", "clip_bpe")
VOCABULARIES = ("wordpiece", *BYTE_PAIRS, "unigram")
FILTERS = ("bilinear", "bicubic", "lanczos")
DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "float32")

_FREE_SECTIONS = ("metrics", "parity", "source")
_MAX_IMAGE_PX = 4096
_MAX_FILE_BYTES = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become the input of the vision graph; the trainer follows the same page."""

    image_px: int
    """Side of the square input, in pixels."""

    resize: str = "squash"
    """"squash" bends the whole image into the square; "crop" fits the short side, then cuts the centre."""

    resize_px: int = 0
    """With "crop": what the short side is fitted to before the centre is cut; 0 is `image_px`. With "squash":
    what the long side is fitted to before the whole is bent, as Idefics3 has it; 0 is nothing of the kind."""

    filter: str = "bicubic"
    """Pillow's resampling filter: bilinear, bicubic or lanczos."""

    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    """Subtracted per channel, on the scale 0 to 255."""

    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    """Divided by per channel, on the scale 0 to 255."""

    in_graph: bool = True
    """True: the graph takes uint8 (b, s, s, 3) and scales; False: float32 (b, 3, s, s), scaled before it."""

    def __post_init__(self) -> None:
        """Check the ranges, as trainers build this from code too."""
        if isinstance(self.image_px, bool) or not isinstance(self.image_px, int) or self.image_px < 1:
            raise ManifestError(
                f"preprocessing.image_px must be an integer of at least 1, got {self.image_px!r}"
            )
        if self.image_px > _MAX_IMAGE_PX:
            raise ManifestError(
                f"preprocessing.image_px must be at most {_MAX_IMAGE_PX}, got {self.image_px}"
            )
        for name, value, known in (("resize", self.resize, RESIZES), ("filter", self.filter, FILTERS)):
            if value not in known:
                raise ManifestError(f"preprocessing.{name} must be one of {', '.join(known)}, got {value!r}")
        if self.resize_px and not self.image_px <= self.resize_px <= _MAX_IMAGE_PX:
            raise ManifestError(
                f"preprocessing.resize_px must be 0 or from image_px {self.image_px} to {_MAX_IMAGE_PX}, "
                f"got {self.resize_px}"
            )
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ManifestError("preprocessing.mean and .std must have three numbers each, one per channel")
        if min(self.std) <= 0:
            raise ManifestError(f"preprocessing.std must be above 0, got {list(self.std)}")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Where the pieces are and what the special ones are called."""

    file: str = "vocab.txt"
    """One piece a line, its id is its line number from 0."""

    kind: str = "wordpiece"
    """"wordpiece" (BERT), "byte_bpe" (GPT-2), "digit_bpe" (GPT-2, each digit a word, as SmolLM2), "clip_bpe"
    (CLIP) or "unigram" (SentencePiece as SigLIP)."""

    merges: str = ""
    """File of the pairs that are joined, best first; only for the kinds of byte pairs."""

    scores: str = ""
    """File of the pieces' log-probabilities, one a line; only for unigrams."""

    lowercase: bool = True
    pad: str = "[PAD]"
    unknown: str = "[UNK]"
    start: str = "[CLS]"
    end: str = "[SEP]"

    max_text_tokens: int = 40
    """Longest sequence that the text graph reads, start and end marks counted."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What `DecodeOptions` means where it says None."""

    max_new_tokens: int = 24
    min_new_tokens: int = 0
    beams: int = 3
    length_penalty: float = 1.0
    rerank: float = 0.0
    no_repeat_ngram: int = 0


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; a dimension is a number or the name of a free one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One graph: what it is for, which runtime reads it, and its tensors in order."""

    role: str
    target: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole manifest; `vocabulary` and `decoding` are always there, as every bundle has words."""

    name: str
    kind: tuple[str, ...]
    precision: str
    scheme: str
    preprocessing: Preprocessing
    vocabulary: Vocabulary
    decoding: Decoding
    graphs: tuple[GraphSpec, ...]
    files: Mapping[str, FileEntry]
    confidence: Calibration | None = None
    """None: captions carry no confidence."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets that have at least one graph, in the order of the graph table."""
        return tuple(dict.fromkeys(graph.target for graph in self.graphs))

    def to_fields(self) -> dict[str, Any]:
        """The manifest as plain JSON values, keys in the order of the dataclass after the version."""
        page: dict[str, Any] = {
            "format_version": self.format_version,
            "name": self.name,
            "kind": list(self.kind),
        }
        page.update(precision=self.precision, scheme=self.scheme)
        for name in ("preprocessing", "vocabulary", "decoding"):
            section = getattr(self, name)
            page[name] = {item.name: _plain(getattr(section, item.name)) for item in fields(section)}
        if not self.vocabulary.scores:
            del page["vocabulary"]["scores"]  # most bundles have none, and readers that are older know none
        page["graphs"] = [
            {
                "role": graph.role,
                "target": graph.target,
                "file": graph.file,
                "inputs": [_tensor_fields(tensor) for tensor in graph.inputs],
                "outputs": [_tensor_fields(tensor) for tensor in graph.outputs],
            }
            for graph in self.graphs
        ]
        page["files"] = {
            path: {"bytes": entry.bytes, "sha256": entry.sha256} for path, entry in sorted(self.files.items())
        }
        if self.confidence is not None:
            page["confidence"] = self.confidence.to_fields()
        for name in _FREE_SECTIONS:
            page[name] = getattr(self, name)
        page["licence"] = self.licence
        return page

    def to_json(self) -> str:
        """The manifest as the text of `tellapart.json`; equal manifests give equal text.

        Raises:
            ManifestError: a report section holds something that JSON cannot say.
        """
        try:
            return json.dumps(self.to_fields(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise ManifestError(
                f"metrics, parity and source must be plain JSON values without NaN or infinity: {error}"
            ) from error


def parse_manifest(text: bytes | str, *, bundle: str = "") -> Manifest:
    """Read a manifest and check all that can be checked without the other files.

    Args:
        text: the content of `tellapart.json`, UTF-8.
        bundle: where it came from, for the message of an error.

    Raises:
        BundleVersionError: the bundle was written by a newer tellapart.
        ManifestError: not JSON, a key missing, unknown or twice, a value of the wrong kind or out of
            range, an unsafe path, a graph whose file is not listed, one role twice for one target.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise manifest_error(bundle, f"is larger than {MAX_MANIFEST_BYTES} bytes, which no real manifest is")
    page = load_json(text, bundle=bundle)
    if not isinstance(page, dict):
        raise manifest_error(bundle, f"must hold a JSON object, got {type(page).__name__}")
    top = Section(page, "", bundle)
    # The version comes first: a newer format may have keys that would look like mistakes here.
    version = top.integer("format_version", least=1)
    if version > FORMAT_VERSION:
        raise BundleVersionError(
            f"{bundle or MANIFEST_NAME} has format_version {version} and this tellapart reads up to "
            f"{FORMAT_VERSION}; upgrade it: pip install --upgrade tellapart",
            bundle=bundle,
        )
    top.only(item.name for item in fields(Manifest))
    manifest = Manifest(
        format_version=version,
        name=top.text("name"),
        kind=_read_kind(top),
        precision=top.text("precision"),
        scheme=top.text("scheme", default=""),
        preprocessing=_read_preprocessing(top.section("preprocessing")),
        vocabulary=_read_vocabulary(top.section("vocabulary")),
        decoding=_read_decoding(top.section("decoding", default={})),
        graphs=tuple(_read_graph(item) for item in top.sections("graphs")),
        files=_read_files(top.section("files")),
        confidence=read_confidence(top.section("confidence")) if "confidence" in top.values else None,
        metrics=top.section("metrics", default={}).values,
        parity=top.section("parity", default={}).values,
        source=top.section("source", default={}).values,
        licence=top.text("licence", default=""),
    )
    _check_references(manifest, bundle)
    return manifest


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tensor_fields(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _read_kind(top: Section) -> tuple[str, ...]:
    kind = top.texts("kind")
    for name in kind:
        if name not in KINDS:
            raise top.error("kind", f"must be a list out of {', '.join(KINDS)}, got {name!r}")
    if not kind or len(set(kind)) != len(kind):
        raise top.error("kind", f"must name each kind once and at least one, got {list(kind)}")
    return kind


def _read_preprocessing(section: Section) -> Preprocessing:
    section.only(item.name for item in fields(Preprocessing))
    mean, std = section.numbers("mean", length=3), section.numbers("std", length=3)
    return Preprocessing(
        image_px=section.integer("image_px", least=1, most=_MAX_IMAGE_PX),
        resize_px=section.integer("resize_px", least=0, most=_MAX_IMAGE_PX, default=0),
        resize=section.choice("resize", RESIZES),
        filter=section.choice("filter", FILTERS),
        mean=cast("tuple[float, float, float]", mean),
        std=cast("tuple[float, float, float]", std),
        in_graph=section.boolean("in_graph"),
    )


def _read_vocabulary(section: Section) -> Vocabulary:
    section.only(item.name for item in fields(Vocabulary))
    vocabulary = Vocabulary(
        kind=section.choice("kind", VOCABULARIES),
        file=section.text("file"),
        merges=section.text("merges", default=""),
        scores=section.text("scores", default=""),
        lowercase=section.boolean("lowercase"),
        pad=section.text("pad"),
        unknown=section.text("unknown"),
        start=section.text("start"),
        end=section.text("end"),
        max_text_tokens=section.integer("max_text_tokens", least=3, most=4096),
    )
    special = (vocabulary.pad, vocabulary.unknown, vocabulary.start, vocabulary.end)
    if vocabulary.kind == "wordpiece" and len(set(special)) != len(special):
        raise section.error("pad", f"and the other special pieces must all differ, got {list(special)}")
    if (vocabulary.kind in BYTE_PAIRS) != bool(vocabulary.merges):
        raise section.error("merges", f"is a file for byte pairs alone, and the kind is {vocabulary.kind}")
    if (vocabulary.kind == "unigram") != bool(vocabulary.scores):
        raise section.error("scores", f"is a file for unigrams alone, and the kind is {vocabulary.kind}")
    return vocabulary


def _read_decoding(section: Section) -> Decoding:
    section.only(item.name for item in fields(Decoding))
    default = Decoding()
    decoding = Decoding(
        max_new_tokens=section.integer("max_new_tokens", least=1, most=4096, default=default.max_new_tokens),
        min_new_tokens=section.integer("min_new_tokens", least=0, most=4096, default=default.min_new_tokens),
        beams=section.integer("beams", least=1, most=256, default=default.beams),
        length_penalty=section.number("length_penalty", least=0.0, default=default.length_penalty),
        rerank=section.number("rerank", least=0.0, default=default.rerank),
        no_repeat_ngram=section.integer("no_repeat_ngram", least=0, most=64, default=default.no_repeat_ngram),
    )
    if decoding.min_new_tokens > decoding.max_new_tokens:
        raise section.error("min_new_tokens", "must not be above max_new_tokens")
    return decoding


def _read_graph(section: Section) -> GraphSpec:
    section.only(item.name for item in fields(GraphSpec))
    return GraphSpec(
        role=section.choice("role", ROLES),
        target=section.choice("target", TARGETS),
        file=section.text("file"),
        inputs=_read_tensors(section, "inputs"),
        outputs=_read_tensors(section, "outputs"),
    )


def _read_tensors(section: Section, key: str) -> tuple[TensorSpec, ...]:
    tensors = []
    for item in section.sections(key):
        item.only(("name", "dtype", "shape"))
        tensors.append(TensorSpec(item.text("name"), item.choice("dtype", DTYPES), item.shape("shape")))
    names = [tensor.name for tensor in tensors]
    if not names or len(set(names)) != len(names):
        raise section.error(key, f"must name each tensor once and at least one, got {names}")
    return tuple(tensors)


def _read_files(section: Section) -> dict[str, FileEntry]:
    files = {}
    for path in section.values:
        entry = section.section(path)
        entry.only(("bytes", "sha256"))
        size = entry.integer("bytes", least=0, most=_MAX_FILE_BYTES)
        digest = entry.text("sha256")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise entry.error("sha256", f"must be 64 lower-case hexadecimal digits, got {digest[:80]!r}")
        files[path] = FileEntry(size, digest)
    check_paths(files, reserved=MANIFEST_NAME, bundle=section.bundle)
    return files


def _check_references(manifest: Manifest, bundle: str) -> None:
    wanted = [(f"the {graph.role} graph for {graph.target}", graph.file) for graph in manifest.graphs]
    words = [("the vocabulary", manifest.vocabulary.file)]
    if manifest.vocabulary.merges:
        words.append(("the merges", manifest.vocabulary.merges))
    if manifest.vocabulary.scores:
        words.append(("the scores", manifest.vocabulary.scores))
    folders = {graph.file for graph in manifest.graphs if graph.target == "coreml"}
    for what, path in [*words, *wanted]:
        # A package for Core ML is a folder; its parts are listed.
        inside = path in folders and any(name.startswith(f"{path}/") for name in manifest.files)
        if path not in manifest.files and not inside:
            raise manifest_error(bundle, f"names {path!r} for {what}, and its files do not list it")
    pairs = [(graph.role, graph.target) for graph in manifest.graphs]
    for pair in pairs:
        if pairs.count(pair) > 1:
            raise manifest_error(bundle, f"has the role {pair[0]!r} twice for the target {pair[1]!r}")
    if manifest.confidence is not None and set(manifest.kind) != set(KINDS):
        raise manifest_error(bundle, "has a confidence and is not both captioner and retriever")
    if manifest.decoding.rerank and "retriever" not in manifest.kind:
        raise manifest_error(bundle, "sets decoding.rerank and is no retriever")
    for kind in manifest.kind:
        missing = [role for role in KINDS[kind] if not any(graph.role == role for graph in manifest.graphs)]
        if missing:
            raise manifest_error(
                bundle, f"calls itself a {kind} and has no graph of role {' or '.join(missing)}"
            )
        for graph in manifest.graphs:
            if graph.role == "vision" and _SEEN[kind] not in [tensor.name for tensor in graph.outputs]:
                raise manifest_error(
                    bundle, f"calls itself a {kind}, and its vision graph has no output {_SEEN[kind]!r}"
                )
