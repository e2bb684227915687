"""The graphs of a float bundle -> those of an INT8 bundle, by a named scheme."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tellapart.backends.coreml import SUFFIX
from tellapart.bundle import Bundle
from tellapart.errors import UsageError
from tellapart.manifest import GraphSpec, Manifest
from tellapart.photos import Photos, spread
from tellapart_coreml.package import read_package
from tellapart_quantization.activations_coreml import trunk_operations
from tellapart_quantization.calibration import Range, find_ranges
from tellapart_quantization.dynamic_onnx import quantize_products, store_seven_bits
from tellapart_quantization.int8_coreml import write_coreml_graphs
from tellapart_quantization.int8_onnx import quantize_trunk, trunk_tensors
from tellapart_quantization.int8_openvino import write_openvino_graphs
from tellapart_quantization.options import QuantizeOptions
from tellapart_quantization.schemes import SCHEMES, QuantScheme
from tellapart_quantization.sensitivity import choose_float_blocks
from tellapart_quantization.surgery import FEATURES, ancestors, name_nodes
from tellapart_quantization.symmetric_onnx import check_symmetric, store_symmetric
from tellapart_quantization.weights_onnx import quantize_weights

_CALIBRATION_BATCH = 4
_SCAN_PHOTOS = 24


def write_graphs(
    source: Bundle,
    scratch: Path,
    photos: Photos,
    calibrated: list[str],
    options: QuantizeOptions,
    say: Callable[[str], None],
) -> tuple[Manifest, dict[str, Any]]:
    """Copy what stays, quantize the graphs.

    Args:
        source: the float bundle.
        scratch: folder of the bundle to be.
        photos: where photos are.
        calibrated: names of those to calibrate on.
        options: a scheme by its own name, and what stays in float.
        say: told what is going on.

    Returns:
        The manifest to be written, its files unknown, and facts for its report.

    Raises:
        UsageError: no graphs to make them of, or a block that does not exist.
    """
    manifest, scheme = source.manifest, SCHEMES[options.scheme]
    foreign = {graph.file for graph in manifest.graphs}
    for name in manifest.files:
        if name not in foreign and not name.endswith((".onnx.data", ".bin")) and SUFFIX not in name:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path(name), scratch / name)
    wanted = "coreml" if scheme.target == "coreml" else "onnx"
    given = tuple(graph for graph in manifest.graphs if graph.target == wanted)
    if not given and wanted == "coreml":
        raise UsageError(
            f"{source.name} has no Core ML packages, of which INT8 ones are made; export the checkpoint "
            "again: tellapart export CHECKPOINT --target onnx coreml"
        )
    if not given:
        raise UsageError(
            f"{source.name} has no ONNX graphs, of which INT8 ones are made for every target; export the "
            "checkpoint again: tellapart export CHECKPOINT --target onnx openvino"
        )
    details: dict[str, Any] = {"scheme": scheme.name}
    if scheme.target == "coreml":
        trunk = False
        kept, operations = _float_operations(source, options, say) if scheme.activations else ([], [])
        graphs, details["weights"] = write_coreml_graphs(
            source,
            scratch,
            given,
            say=say,
            feeds=_feeds(source, photos, calibrated) if scheme.activations else None,
            percentile=scheme.percentile,
            keep_float=operations,
        )
    elif scheme.target == "openvino":
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
        graphs, kept, trunk, scan = _write_onnx(given, source, scratch, photos, calibrated, options, say)
        if scan:
            details["sensitivity"] = scan
    precision = "int8" if trunk and not kept else "mixed"
    details |= {"float_blocks": kept, "calibrated_on": len(calibrated) if trunk or scheme.activations else 0}
    if scheme.device:
        details |= {"device": scheme.device, "device_command": scheme.device_command}
    name = f"{scheme.name}" + (f", float: {' '.join(kept)}" if kept else "")
    return dataclasses.replace(manifest, precision=precision, scheme=name, graphs=graphs, files={}), details


def _float_operations(
    source: Bundle, options: QuantizeOptions, say: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    """Blocks of the trunk of the vision package that stay in float, and their operations.

    Raises:
        UsageError: a block that does not exist, or nobody can name the blocks.
    """
    wanted = SCHEMES[options.scheme].float_blocks if options.keep_float is None else options.keep_float
    if wanted == ("auto",):
        raise UsageError("--keep-float auto scans graphs for onnxruntime; name the blocks for Core ML")
    pages = {graph.target: graph for graph in source.manifest.graphs if graph.role == "vision"}
    graph = onnx.load_model(source.path(pages["onnx"].file)) if "onnx" in pages else None
    if graph is None or not any(FEATURES in node.output for node in graph.graph.node):
        what = (
            "no trunk of convolutions" if graph is not None else "no ONNX graph beside it to name its blocks"
        )
        if options.keep_float:
            raise UsageError(f"--keep-float: the vision package of {source.name} has {what}")
        say(f"no block stays in float: the vision package has {what}")
        return [], []
    name_nodes(graph)
    blocks = trunk_operations(read_package(source.root / pages["coreml"].file), graph)
    unknown = [name for name in wanted if name not in blocks]
    if unknown:
        raise UsageError(f"no block {unknown[0]!r} in the trunk; there are {', '.join(blocks)}")
    return list(wanted), [name for block in wanted for name in blocks[block]]


def _write_onnx(
    graphs: tuple[GraphSpec, ...],
    source: Bundle,
    scratch: Path,
    photos: Photos,
    calibrated: list[str],
    options: QuantizeOptions,
    say: Callable[[str], None],
) -> tuple[tuple[GraphSpec, ...], list[str], bool, list[dict[str, Any]]]:
    """Pages of the graphs written, blocks left in float, whether a trunk is in 8 bits, what a scan found."""
    scheme = SCHEMES[options.scheme]
    kept: list[str] = []
    scan: list[dict[str, Any]] = []
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
                kept = _float_blocks(model, ranges, source, photos, calibrated, options, say, scan)
                if scheme.seven_bits:  # this quantizer wants graphs that are float as yet
                    small = _store(model, scheme)
                small = quantize_trunk(small, ranges, keep_float=kept, form=scheme.form)
            if not scheme.seven_bits:
                small = _store(small, scheme, only=heads)
        else:
            small = _store(model, scheme)
        onnx.save_model(small, scratch / graph.file)
        say(f"{graph.file}: {model.ByteSize() / 2**20:.2f} -> {small.ByteSize() / 2**20:.2f} MiB")
    return graphs, kept, trunk, scan


def _store(model: Any, scheme: QuantScheme, *, only: Collection[str] | None = None) -> Any:
    """Weights in 8 bits, as the scheme's runtime reads them."""
    if scheme.form.symmetric:
        stored = store_symmetric(model, only=only)
        check_symmetric(stored)
        return stored
    if scheme.seven_bits:
        return store_seven_bits(model)
    return quantize_weights(model, only=only)


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
    scan: list[dict[str, Any]],
) -> list[str]:
    if options.keep_float != ("auto",):
        return list(
            SCHEMES[options.scheme].float_blocks if options.keep_float is None else options.keep_float
        )
    # Neighbours of the calibration photos in the pile; the photos of the comparison stay unseen.
    names = spread(calibrated, _SCAN_PHOTOS)
    page = source.manifest.preprocessing
    pixels = np.concatenate(list(photos.batches(names, page, batch_size=_CALIBRATION_BATCH)))
    form = SCHEMES[options.scheme].form
    return choose_float_blocks(model, ranges, pixels, most=options.auto_blocks, form=form, say=say, scan=scan)
