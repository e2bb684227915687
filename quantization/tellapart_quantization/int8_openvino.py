"""Graphs for OpenVINO in 8 bits, by NNCF: the trunk computes in them, all other weights are stored in them.

A trunk of convolutions is calibrated on photos and keeps its first blocks in float, as for onnxruntime. What
looks at one token or one row (decoder, text tower, heads) and towers of transformers have their weights in
8 bits and compute in float: calibrated, a decoder is ruined (design notes: logits 34 to 49 % off), and no
faster.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path, PurePosixPath
from typing import Any

import numpy.typing as npt

from tellapart.bundle import Bundle
from tellapart.errors import BundleError, MissingExtraError, UsageError
from tellapart.manifest import GraphSpec
from tellapart_quantization.surgery import FEATURES

_BLOCK = re.compile(r"\btrunk\.(stem|head|blocks\.\d+)\b")

Feeds = Callable[[], Iterator[Mapping[str, npt.NDArray[Any]]]]
"""Inputs of a graph, batch by batch, from the start at each call."""


class _Batches:
    """Feeds as NNCF reads them, several times."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    def __iter__(self) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
        return self._feeds()


def write_openvino_graphs(
    source: Bundle,
    scratch: Path,
    graphs: Sequence[GraphSpec],
    feeds: Feeds,
    *,
    batches: int,
    keep_float: Sequence[str],
    say: Callable[[str], None],
) -> tuple[tuple[GraphSpec, ...], list[str], bool]:
    """Quantize graphs of a bundle for OpenVINO.

    Args:
        source: the float bundle.
        scratch: folder of the bundle to be.
        graphs: the ONNX graphs of `source` that it shall have.
        feeds: of the vision graph, for calibration; through the device's own preprocessing.
        batches: how many there are.
        keep_float: blocks of the trunk that stay as they are.
        say: told how large each was and is.

    Returns:
        Pages of the new graphs, the blocks left in float, and whether there is a trunk in 8 bits.

    Raises:
        UsageError: a block that does not exist.
        MissingExtraError: OpenVINO or NNCF is not installed.
    """
    kept: list[str] = []
    trunk = False
    for graph in graphs:
        model = read_model(source.path(graph.file))
        if model.blocks:
            trunk, kept = True, list(keep_float)
            say("calibrating the vision trunk")
            small = quantize_trunk(model, feeds, batches=batches, keep_float=kept)
        else:
            small = quantize_weights(model)
        file = scratch / openvino_spec(graph).file
        save_model(small, file)
        written = file.stat().st_size + file.with_suffix(".bin").stat().st_size
        before = source.path(graph.file).stat().st_size
        say(f"{graph.role}: {before / 2**20:.2f} -> {written / 2**20:.2f} MiB")
    return tuple(map(openvino_spec, graphs)), kept, trunk


@dataclasses.dataclass(frozen=True)
class Model:
    """A float graph as OpenVINO sees it."""

    graph: Any
    """`openvino.Model`."""
    blocks: Mapping[str, list[str]]
    """Names of a trunk's operators by block, in the order of the pass; empty where there is no trunk."""


def openvino_spec(graph: GraphSpec) -> GraphSpec:
    """The page of an ONNX graph as it becomes one for OpenVINO."""
    file = str(PurePosixPath(graph.file).with_suffix(".xml"))
    return dataclasses.replace(graph, target="openvino", file=file)


def read_model(file: Path) -> Model:
    """Read a float ONNX graph.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    try:
        import openvino
        from openvino._offline_transformations import apply_moc_transformations
    except ImportError as error:
        raise MissingExtraError("nncf", "The scheme openvino needs OpenVINO and NNCF") from error
    graph = openvino.Core().read_model(str(file))
    blocks = _trunk_blocks(graph)  # while the tensors have the names that ONNX gave them
    # What ONNX spells out becomes single operators again, which the quantizer knows.
    apply_moc_transformations(graph, cf=True)
    return Model(graph, blocks)


def save_model(model: Any, file: Path) -> None:
    """Write ".xml" and ".bin"; what is float stays float32.

    Raises:
        BundleError: the disk is full, or refuses.
    """
    import openvino

    try:
        openvino.save_model(model, str(file), compress_to_fp16=False)
    except RuntimeError as error:  # it gives no number of the system's
        raise BundleError(f"OpenVINO cannot write {file.name}: {str(error).strip()[:300]}") from error


def _trunk_blocks(graph: Any) -> dict[str, list[str]]:
    """An operator without weights belongs to the block of the convolution before it."""
    ends = [op for op in graph.get_ordered_ops() for port in op.outputs() if FEATURES in port.get_names()]
    inside = _ancestors(ends)
    blocks: dict[str, list[str]] = {}
    current = None
    for op in graph.get_ordered_ops():
        name = op.get_friendly_name()
        if name not in inside or op.get_type_name() in _NOT_COMPUTED:
            continue
        found = [match.group(1) for source in _weights(op) if (match := _BLOCK.search(source))]
        current = found[0] if found else current
        if current is not None:
            blocks.setdefault(current, []).append(name)
    return blocks


def _weights(op: Any) -> list[str]:
    """Names of what an operator reads; those of a depthwise convolution pass through a Reshape."""
    sources = _sources(op)
    behind = [node for source in sources if source.get_type_name() == "Reshape" for node in _sources(source)]
    return [source.get_friendly_name() for source in (*sources, *behind)]


def _sources(op: Any) -> list[Any]:
    return [value.get_source_output().get_node() for value in op.inputs()]


def quantize_trunk(model: Model, feeds: Feeds, *, batches: int, keep_float: Collection[str]) -> Any:
    """A vision graph whose trunk computes in 8 bits and whose other weights are stored in them.

    Args:
        model: with a trunk; may be changed.
        feeds: see `Feeds`; through the device's own preprocessing.
        batches: how many there are.
        keep_float: blocks that stay as they are, by their names in `model.blocks`.

    Raises:
        UsageError: a block that does not exist.
        MissingExtraError: NNCF is not installed.
    """
    graph, blocks = model.graph, model.blocks
    unknown = [name for name in keep_float if name not in blocks]
    if unknown:
        raise UsageError(f"no block {unknown[0]!r} in the trunk; there are {', '.join(blocks)}")
    trunk = {name for names in blocks.values() for name in names}
    kept = {name for block in keep_float for name in blocks[block]}
    others = {
        op.get_friendly_name() for op in graph.get_ordered_ops() if op.get_type_name() not in _NOT_COMPUTED
    }
    with _nncf() as nncf:
        quantized = nncf.quantize(
            graph,
            nncf.Dataset(_Batches(feeds)),
            subset_size=batches,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=sorted((others - trunk) | kept), validate=False),
        )
        return _stored_in_8_bits(nncf, quantized, kept)


def quantize_weights(model: Model) -> Any:
    """A graph whose matrices and word table are stored in 8 bits, a scale and an offset per row.

    Raises:
        MissingExtraError: NNCF is not installed.
    """
    with _nncf() as nncf:
        return _stored_in_8_bits(nncf, model.graph, ())


_NOT_COMPUTED = ("Constant", "Parameter", "Result")


def _stored_in_8_bits(nncf: Any, graph: Any, kept: Collection[str]) -> Any:
    return nncf.compress_weights(
        graph,
        mode=nncf.CompressWeightsMode.INT8_ASYM,
        ignored_scope=nncf.IgnoredScope(names=sorted(kept), validate=False) if kept else None,
    )


def _ancestors(ends: list[Any]) -> set[str]:
    waiting, found = list(ends), set()
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() not in found:
            found.add(op.get_friendly_name())
            waiting += _sources(op)
    return found


@contextmanager
def _nncf() -> Iterator[Any]:
    """NNCF, silent, and telling nobody about us."""
    # Its own switch for that, read when it is imported.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", "The scheme openvino needs OpenVINO and NNCF") from error
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):  # progress bars
            yield nncf
    finally:
        logger.setLevel(level)
