"""A bundle on its way to INT8: calibrate, quantize, compare, judge, publish."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from tellapart.bundle import open_bundle, staged_bundle, write_bundle
from tellapart.doctor import machine_facts
from tellapart.errors import DataError, UsageError
from tellapart.manifest import Manifest
from tellapart.photos import Photos, read_captions, spread
from tellapart.report_page import REPORT_NAME, report_page
from tellapart.retriever import require_kind
from tellapart.truematch import Benchmark, image_name, read_benchmark
from tellapart.truematch_images import BenchmarkImages, images_place
from tellapart_quantization.auto import choose_scheme
from tellapart_quantization.options import QuantizeOptions
from tellapart_quantization.report import check_budget, compare_bundles
from tellapart_quantization.schemes import AUTO, SCHEMES
from tellapart_quantization.self_retrieval import compare_self_retrieval
from tellapart_quantization.timing import time_in_turns
from tellapart_quantization.write_graphs import write_graphs

__all__ = ["QuantizeOptions", "quantize_bundle"]


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
        tried: list[dict[str, Any]] = []
        say(f"{len(calibrated)} photos to calibrate on, {len(checked)} to compare on")
        if options.scheme == AUTO:
            chosen, tried = choose_scheme(
                source, scratch, photos, calibrated, checked, options, captions=captions, say=say
            )
            options = dataclasses.replace(options, scheme=chosen)
        manifest, details = write_graphs(source, scratch, photos, calibrated, options, say)
        if tried:
            details["tried"] = tried
        manifest = write_bundle(scratch, manifest)
        with open_bundle(scratch) as made:
            report = compare_bundles(source, made, photos, checked, captions=captions)
            if "device" not in details:
                report["time"] = time_in_turns(source, [made], photos, checked)[0]
        if bags is not None:
            report["self_retrieval"] = compare_self_retrieval(
                bundle, scratch, *bags, scorer=options.scorer, say=say
            )
        say(f"compared: {report}")
        check_budget(report, options.budget)
        found = {**details, **report, "machine": machine_facts()}
        manifest = dataclasses.replace(manifest, metrics={**source.manifest.metrics, "quantization": found})
        return write_bundle(scratch, manifest, {REPORT_NAME: report_page(manifest).encode("utf-8")})


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
    default = SCHEMES["vnni" if options.scheme == AUTO else options.scheme].photos
    most = options.calibration_limit or default
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
