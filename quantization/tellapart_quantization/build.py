"""A bundle on its way to INT8: calibrate, quantize, compare, judge, publish."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx

from tellapart.bundle import Bundle, open_bundle, staged_bundle, write_bundle
from tellapart.errors import DataError, UsageError
from tellapart.manifest import GraphSpec, Manifest
from tellapart.photos import Photos, read_captions, spread
from tellapart.retriever import require_kind
from tellapart.truematch import Benchmark, image_name, read_benchmark
from tellapart.truematch_images import BenchmarkImages, images_place
from tellapart_quantization.calibration import Range, find_ranges
from tellapart_quantization.dynamic_onnx import quantize_products
from tellapart_quantization.int8_onnx import quantize_trunk, trunk_tensors
from tellapart_quantization.int8_openvino import write_openvino_graphs
from tellapart_quantization.report import Budget, check_budget, compare_bundles
from tellapart_quantization.self_retrieval import compare_self_retrieval
from tellapart_quantization.sensitivity import choose_float_blocks
from tellapart_quantization.surgery import FEATURES, ancestors, name_nodes
from tellapart_quantization.weights_onnx import quantize_weights

_CALIBRATION_BATCH = 4
_SCAN_PHOTOS = 24


@dataclasses.dataclass(frozen=True)
class QuantScheme:
    """How the parts of a bundle are made small."""

    name: str
    trunk: bool
    """The vision trunk computes in 8 bits; otherwise it stays float."""
    percentile: float = 99.999
    """Share of a tensor's values inside its range, percent; see `Histogram.percentile_range`."""
    dynamic: bool = False
    """All products of the vision graph are in 8 bits, their scales found while it runs."""
    float_blocks: tuple[str, ...] = ()
    """Blocks of the trunk that stay in float unless the caller says otherwise."""
    target: str = "onnx"
    """What the graphs are for."""
    photos: int = 128
    """Most photos to calibrate on unless the caller says otherwise."""


SCHEMES = {
    # The first three blocks hold 1 % of the weights and a third of the error: with Lite0's ImageNet weights,
    # on 32 Flickr8k photos, the features are 16.1 % off with all blocks in 8 bits and 10.5 % so, at no size.
    "vnni": QuantScheme("vnni", trunk=True, float_blocks=("stem", "blocks.0", "blocks.1")),
    "weights": QuantScheme("weights", trunk=False),
    "dynamic": QuantScheme("dynamic", trunk=False, dynamic=True),
    # With the embedded pair, 300 photos: 98.3 % of next tokens stay the same as for "vnni", 98.6 % with four
    # times the photos, 98.9 % with two more blocks in float, at 0.02 MiB.
    "openvino": QuantScheme(
        "openvino",
        trunk=True,
        float_blocks=("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"),
        target="openvino",
        photos=512,
    ),
}
"""Presets: "vnni" is for x86 and ARM with 8-bit dot products, "weights" keeps every activation in float,
"dynamic" is for vision transformers on the processors of "vnni", "openvino" is for that runtime, by NNCF. A
vision graph without a trunk of convolutions (the towers of CLIP, BLIP and their kin) has its weights alone in
8 bits in any but "dynamic"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """What to make and what to prove it on."""

    images: Path
    """Folder or tar of photos, for calibration and for the comparison."""

    scheme: str = "vnni"
    """A name out of `SCHEMES`."""

    keep_float: tuple[str, ...] | None = None
    """Blocks of the trunk that stay in float; None takes the scheme's, ("auto",) measures."""

    auto_blocks: int = 3
    """Most blocks that "auto" keeps."""

    calibration_limit: int | None = None
    """Most photos to calibrate on; None takes the scheme's number."""

    check_images: int = 200
    """Most photos to compare on."""

    captions: Path | None = None
    """JSON lines with human captions; retrieval is compared where they are given."""

    split: str | None = None
    """Compare on this split of `captions` and calibrate on the rest."""

    benchmark: Path | None = None
    """Folder of a TrueMatch-style benchmark; self-retrieval on its bags is compared where it is given."""

    benchmark_images: Path | None = None
    """Folder or tar of its photos; None looks where the benchmark says."""

    limit_bags: int | None = None
    """First so many bags of each size; None takes all."""

    scorer: Path | None = None
    """Bundle whose retriever judges the captions of both bundles; None takes the float bundle's."""

    budget: Budget = dataclasses.field(default_factory=Budget)

    overwrite: bool = False
    """Replace a bundle that is there."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.scheme not in SCHEMES:
            raise UsageError(f"scheme {self.scheme!r} is not known; choose one of {', '.join(SCHEMES)}")
        limit = 1 if self.calibration_limit is None else self.calibration_limit
        if min(limit, self.check_images, self.auto_blocks) < 1:
            raise UsageError("calibration limit, check images and auto blocks have to be at least 1")
        if self.split is not None and self.captions is None:
            raise UsageError("a split needs the captions file that tells who is in it (--captions)")
        needless = {"--benchmark-images": self.benchmark_images, "--limit-bags": self.limit_bags}
        needless["--scorer"] = self.scorer
        given = [flag for flag, value in needless.items() if value is not None]
        if self.benchmark is None and given:
            raise UsageError(f"{', '.join(given)} is of use only with a benchmark (--benchmark)")


def quantize_bundle(
    bundle: Path, out: Path, options: QuantizeOptions, *, say: Callable[[str], None] = lambda line: None
) -> Manifest:
    """Make an INT8 bundle; if it is over budget or anything fails, nothing is left at `out`.

    Args:
        bundle: a float bundle with ONNX graphs.
        out: the bundle to make.
        options: scheme, photos and budget.
        say: told what is going on.

    Returns:
        The new manifest, its `metrics` holding the comparison.

    Raises:
        BudgetError: it loses more than the budget allows.
        UsageError: the bundle is quantized already, or a block does not exist.
        DataError: photos or captions that cannot be used.
    """
    with (
        open_bundle(bundle) as source,
        Photos(options.images) as photos,
        staged_bundle(out, overwrite=options.overwrite) as scratch,
        ExitStack() as stack,
    ):
        if source.manifest.precision != "float32":
            raise UsageError(
                f"{bundle} is {source.manifest.precision} already; quantize the float32 bundle instead"
            )
        bags = _open_benchmark(options, stack)
        if bags is not None:
            with open_bundle(options.scorer or bundle) as judge:
                require_kind(judge, "retriever")  # now, before minutes of work find out
        held = _base_names(bags[0]) if bags is not None else frozenset()
        checked, calibrated, captions = _choose_photos(photos, options, held)
        say(f"{len(calibrated)} photos to calibrate on, {len(checked)} to compare on")
        manifest, details = _write_graphs(source, scratch, photos, calibrated, options, say)
        manifest = write_bundle(scratch, manifest)
        with open_bundle(scratch) as made:
            report = compare_bundles(source, made, photos, checked, captions=captions)
        if bags is not None:
            report["self_retrieval"] = compare_self_retrieval(
                bundle, scratch, *bags, scorer=options.scorer, say=say
            )
        say(f"compared: {report}")
        check_budget(report, options.budget)
        metrics = {**source.manifest.metrics, "quantization": {**details, **report}}
        return write_bundle(scratch, dataclasses.replace(manifest, metrics=metrics))


def _open_benchmark(options: QuantizeOptions, stack: ExitStack) -> tuple[Benchmark, BenchmarkImages] | None:
    """The bags and their photos, all of them there; the photos are open as long as the stack."""
    if options.benchmark is None:
        return None
    benchmark = read_benchmark(options.benchmark)
    if options.limit_bags is not None:
        benchmark = benchmark.limited(options.limit_bags)
    images = stack.enter_context(BenchmarkImages(images_place(benchmark, options.benchmark_images)))
    images.require(benchmark.ids())
    return benchmark, images


def _base_names(benchmark: Benchmark) -> frozenset[str]:
    """File names of a benchmark's photos, without folders, as archives differ in these."""
    return frozenset(PurePosixPath(image_name(image)).name for image in benchmark.ids())


def _choose_photos(
    photos: Photos, options: QuantizeOptions, bags: frozenset[str]
) -> tuple[list[str], list[str], dict[str, list[str]] | None]:
    """Names to compare on, names to calibrate on (none in both), and captions of the former.

    Nor is a photo calibrated on whose file name is in `bags`.
    """
    most = options.calibration_limit or SCHEMES[options.scheme].photos
    captions = None
    able = list(photos.names)
    if options.captions is not None:
        captions = read_captions(options.captions, split=options.split)
        able = [name for name in able if captions.get(name)]
        if not able:
            raise DataError(f"{options.captions} has captions for none of the photos in {options.images}")
    if options.split is None:
        rest = [name for name in photos.names if PurePosixPath(name).name not in bags]
        if not rest:
            raise DataError(f"every photo of {options.images} is in the benchmark; none to calibrate on")
        calibrated = spread(rest, min(most, max(1, len(rest) // 2)))
        able = [name for name in able if name not in set(calibrated)] or able
    else:
        # All of the split stays out, so that a larger comparison does not change the calibration.
        held = set(able)
        rest = [name for name in photos.names if name not in held and PurePosixPath(name).name not in bags]
        if not rest:
            raise DataError(
                f"every photo of {options.images} is in split {options.split!r}"
                f"{' or the benchmark' if bags else ''}; none to calibrate on"
            )
        calibrated = spread(rest, most)
    checked = spread(able, options.check_images)
    return checked, calibrated, None if captions is None else {name: captions[name] for name in checked}


def _write_graphs(
    source: Bundle,
    scratch: Path,
    photos: Photos,
    calibrated: list[str],
    options: QuantizeOptions,
    say: Callable[[str], None],
) -> tuple[Manifest, dict[str, Any]]:
    """Copy what stays, quantize the graphs; the manifest to be written and facts for its report."""
    manifest, scheme = source.manifest, SCHEMES[options.scheme]
    foreign = {graph.file for graph in manifest.graphs}
    for name in manifest.files:
        if name not in foreign and not name.endswith((".onnx.data", ".bin")):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path(name), scratch / name)
    given = tuple(graph for graph in manifest.graphs if graph.target == "onnx")
    if not given:
        raise UsageError(
            f"{source.name} has no ONNX graphs, of which INT8 ones are made for every target; export the "
            "checkpoint again: tellapart export CHECKPOINT --target onnx openvino"
        )
    if scheme.target == "openvino":
        if options.keep_float == ("auto",):
            raise UsageError("--keep-float auto scans graphs for onnxruntime; name the blocks for openvino")
        graphs, kept, trunk = write_openvino_graphs(
            source,
            scratch,
            given,
            _feeds(source, photos, calibrated),
            batches=-(-len(calibrated) // _CALIBRATION_BATCH),
            keep_float=scheme.float_blocks if options.keep_float is None else options.keep_float,
            say=say,
        )
    else:
        graphs, kept, trunk = _write_onnx(given, source, scratch, photos, calibrated, options, say)
    precision = "int8" if trunk and not kept else "mixed"
    details = {"scheme": scheme.name, "float_blocks": kept, "calibrated_on": len(calibrated) if trunk else 0}
    name = f"{scheme.name}" + (f", float: {' '.join(kept)}" if kept else "")
    return dataclasses.replace(manifest, precision=precision, scheme=name, graphs=graphs, files={}), details


def _write_onnx(
    graphs: tuple[GraphSpec, ...],
    source: Bundle,
    scratch: Path,
    photos: Photos,
    calibrated: list[str],
    options: QuantizeOptions,
    say: Callable[[str], None],
) -> tuple[tuple[GraphSpec, ...], list[str], bool]:
    """Pages of the graphs written, blocks of the trunk left in float, and whether a trunk is in 8 bits."""
    scheme = SCHEMES[options.scheme]
    kept: list[str] = []
    trunk = False
    for graph in graphs:
        model = onnx.load_model(source.path(graph.file))
        name_nodes(model)
        if graph.role == "vision" and scheme.dynamic:
            small = quantize_products(model)
        elif graph.role == "vision" and any(FEATURES in node.output for node in model.graph.node):
            inside = ancestors(model, [FEATURES])
            heads = {node.name for node in model.graph.node} - inside
            small = model
            if scheme.trunk:
                trunk = True
                say("calibrating the vision trunk")
                ranges = _calibrate(model, source, photos, calibrated, scheme)
                kept = _float_blocks(model, ranges, source, photos, calibrated, options, say)
                small = quantize_trunk(model, ranges, keep_float=kept)
            small = quantize_weights(small, only=heads)
        else:
            small = quantize_weights(model)
        onnx.save_model(small, scratch / graph.file)
        say(f"{graph.file}: {model.ByteSize() / 2**20:.2f} -> {small.ByteSize() / 2**20:.2f} MiB")
    return graphs, kept, trunk


def _feeds(source: Bundle, photos: Photos, calibrated: list[str]) -> Callable[[], Iterator[dict[str, Any]]]:
    def feeds() -> Iterator[dict[str, Any]]:
        page = source.manifest.preprocessing
        for pixels in photos.batches(calibrated, page, batch_size=_CALIBRATION_BATCH):
            yield {"pixels": pixels}

    return feeds


def _calibrate(
    model: Any, source: Bundle, photos: Photos, calibrated: list[str], scheme: QuantScheme
) -> Mapping[str, Range]:
    feeds = _feeds(source, photos, calibrated)
    return find_ranges(model, trunk_tensors(model), feeds(), percentile=scheme.percentile)


def _float_blocks(
    model: Any,
    ranges: Mapping[str, Range],
    source: Bundle,
    photos: Photos,
    calibrated: list[str],
    options: QuantizeOptions,
    say: Callable[[str], None],
) -> list[str]:
    if options.keep_float != ("auto",):
        return list(
            SCHEMES[options.scheme].float_blocks if options.keep_float is None else options.keep_float
        )
    # Neighbours of the calibration photos in the pile; the photos of the comparison stay unseen.
    names = spread(calibrated, _SCAN_PHOTOS)
    page = source.manifest.preprocessing
    pixels = np.concatenate(list(photos.batches(names, page, batch_size=_CALIBRATION_BATCH)))
    return choose_float_blocks(model, ranges, pixels, most=options.auto_blocks, say=say)
