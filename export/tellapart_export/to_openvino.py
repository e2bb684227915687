"""An ONNX file of ours -> OpenVINO's own format, with the names and axes that its page promises."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath
from typing import Any

from tellapart.backends.fixed_shapes import is_fixed
from tellapart.errors import BackendError, BundleError, MissingExtraError, ParityError
from tellapart.manifest import GraphSpec, TensorSpec


def openvino_spec(spec: GraphSpec) -> GraphSpec:
    """The page of the same graph for OpenVINO; its numbers lie beside it, in a ".bin" of the same name."""
    file = str(PurePosixPath(spec.file).with_suffix(".xml"))
    return dataclasses.replace(spec, target="openvino", file=file)


def convert_graph(file: Path, spec: GraphSpec, out: Path) -> None:
    """Write the OpenVINO files of one graph, in float32.

    Args:
        file: the ONNX graph.
        spec: its page.
        out: where the ".xml" goes; the ".bin" goes beside it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        ParityError: OpenVINO gave other inputs or outputs than the page promises.
        BackendError: it cannot read the graph.
    """
    save_graph(read_graph(file, spec), spec, out)


def read_graph(file: Path, spec: GraphSpec) -> Any:
    """An ONNX graph as an `openvino.Model`, axes fixed as on its page; errors as for `convert_graph`."""
    openvino = load_openvino()
    try:
        # What convert_model does, less its note to its makers wherever there is a network.
        from openvino._offline_transformations import apply_moc_transformations

        model = openvino.Core().read_model(str(file))
        if is_fixed(spec):
            model.reshape({tensor.name: list(tensor.shape) for tensor in spec.inputs})
        apply_moc_transformations(model, cf=True)
    except Exception as error:  # its exceptions share no base but this
        raise BackendError(f"OpenVINO cannot convert {file.name}: {str(error).strip()[:300]}") from error
    for ports, tensors in ((model.inputs, spec.inputs), (model.outputs, spec.outputs)):
        have = {port.get_any_name(): port for port in ports}
        for tensor in tensors:
            port = have.get(tensor.name)
            if port is None or len(ports) != len(tensors) or not _fits(port, tensor):
                raise ParityError(
                    f"{spec.role}: OpenVINO made {', '.join(map(str, ports))} of it, which is not its page"
                )
    return model


def save_graph(model: Any, spec: GraphSpec, out: Path) -> None:
    """Write a model; the names of its results stay as they are on the page.

    Raises:
        BundleError: the disk is full, or refuses.
    """
    model.set_friendly_name(spec.role)
    try:
        load_openvino().save_model(model, str(out), compress_to_fp16=False)
    except RuntimeError as error:  # it gives no number of the system's
        raise BundleError(f"OpenVINO cannot write {out.name}: {str(error).strip()[:300]}") from error


def load_openvino() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "The target openvino needs its package") from error
    return openvino


def _fits(port: Any, tensor: TensorSpec) -> bool:
    shape = port.get_partial_shape()
    # OpenVINO knows bounds of some free axes, such as "one or more"; a number has to be that number.
    return len(shape) == len(tensor.shape) and all(
        isinstance(want, str) or (have.is_static and have.get_length() == want)
        for have, want in zip(shape, tensor.shape, strict=True)
    )
