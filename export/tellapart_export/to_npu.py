"""A graph of ours -> OpenVINO's format without free axes, as an NPU takes it.

Vision and texts are the ordinary graphs, their shapes fixed; the decoder is exported once more, over a window
of the past. The numbers are float32 here and what the NPU computes in is float16, so that part is proved
where there is one: `python -m tellapart_export.prove_npu BUNDLE`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tellapart.errors import ParityError
from tellapart.manifest import GraphSpec
from tellapart_export.fixed_shapes import fixed_spec, fixed_step
from tellapart_export.graphs import SourceGraph
from tellapart_export.to_onnx import export_graph
from tellapart_export.to_openvino import openvino_spec, read_graph, save_graph

UNPROVED = "unproved on device: no NPU took part; the same graphs were run by OpenVINO on the processor"
COMMAND = "python -m tellapart_export.prove_npu BUNDLE"
"""To be run where there is an NPU."""


def npu_spec(spec: GraphSpec, *, window: int, tokens: int) -> GraphSpec:
    """The page of the same graph for an NPU; see `fixed_spec`."""
    return openvino_spec(fixed_spec(spec, window=window, tokens=tokens))


def write_npu(source: SourceGraph, onnx_file: Path, spec: GraphSpec, out: Path) -> None:
    """Write the OpenVINO files of one graph without free axes.

    Args:
        source: what to export.
        onnx_file: its ONNX graph with free axes; a decoder's is not used.
        spec: its page, see `npu_spec`.
        out: where the ".xml" goes; the ".bin" goes beside it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        ParityError: OpenVINO gave other inputs or outputs than the page promises, or left an axis free.
        BackendError: it cannot read the graph.
        BundleError: the disk is full, or refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        if spec.role == "decoder":
            onnx_file = Path(folder) / "decoder.onnx"
            window = next(int(tensor.shape[3]) for tensor in spec.inputs if tensor.name == "past_kv")
            export_graph(fixed_step(source, window=window), onnx_file)
        model = read_graph(onnx_file, spec)
        if any(port.get_partial_shape().is_dynamic for op in model.get_ops() for port in op.outputs()):
            raise ParityError(f"{spec.role}: OpenVINO left an axis inside free, which no NPU takes")
        save_graph(model, spec, out)
