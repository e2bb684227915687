"""A package of fixed shapes behind the face of the other runtimes, see `tellapart.backends.fixed_shapes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tellapart.backends.fixed_shapes import Array, FixedShapes, Run, is_fixed, pad_id_of
from tellapart.bundle import Bundle
from tellapart.errors import BackendError, BundleError, ClosedError, ParityError
from tellapart.manifest import GraphSpec
from tellapart_coreml.as_onnx import to_onnx
from tellapart_coreml.package import SUFFIX, Program, Value, load_model, read_package

_TYPES = {"INT32": "int32", "FLOAT16": "float16", "FLOAT32": "float32", "BOOL": "bool"}

LARGEST_HALF = 2048
"""Whole numbers above this have gaps in float16."""


class CoremlSession:
    """A graph of a Core ML package; a `backends.Session`."""

    backend = "coreml"
    threads = 1

    providers: tuple[str, ...]

    def __init__(self, spec: GraphSpec, run: Run, *, where: str, pad_id: int = 0) -> None:
        """Take the page of the graph, what runs it and where; short texts are filled with `pad_id`."""
        if not is_fixed(spec):
            raise BundleError(f"the {spec.role} graph for Core ML has free axes; export the checkpoint again")
        self.spec, self._shapes = spec, FixedShapes(spec, run, pad_id=pad_id)
        self.providers = (where,)
        self._closed = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs, row by row; see `backends.Session.run`."""
        if self._closed:
            raise ClosedError(f"the {self.spec.role} graph was closed; open another")
        return self._shapes.run(feeds)

    def run_quietly(self, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
        """As `run`, and None where the graph refuses."""
        try:
            return self.run(feeds)
        except BackendError:
            return None

    def close(self) -> None:
        """Give the memory back."""
        self._closed = True
        self._shapes = FixedShapes(self.spec, lambda feeds: {})


def open_coreml(bundle: Bundle, role: str) -> CoremlSession:
    """A Core ML graph of a bundle, run by onnxruntime; see `as_onnx`.

    Raises:
        BundleError: none of this role, or its package is damaged.
        ParityError: the package is not what the manifest says.
    """
    spec = bundle.graph(role, "coreml")
    program = read_package(bundle.root / spec.file)
    check_program(program, spec)
    return CoremlSession(
        spec,
        run_elsewhere(program),
        where="onnxruntime, operation by operation",
        pad_id=pad_id_of(bundle, role),
    )


def run_elsewhere(program: Program, *, rounded: bool = True) -> Run:
    """Run a program by onnxruntime; `rounded` as in `to_onnx`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        to_onnx(program, rounded=rounded).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in program.outputs]
    halves = {value.name for value in program.inputs if value.dtype == "FLOAT16"} if rounded else set()

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        given = {}
        for name, array in feeds.items():
            if name in program.images:
                array = array.transpose(0, 3, 1, 2).astype(np.float32)
            elif array.dtype.kind == "f":
                array = (array.astype(np.float16) if name in halves else array).astype(np.float32)
            else:
                array = array.astype(np.int64)
            given[name] = array
        return dict(zip(names, session.run(names, given), strict=True))

    return run


def run_on_device(package: Any) -> Run:
    """Run a package by Core ML itself, on a Mac.

    Raises:
        BackendError: not on a Mac, or Core ML refuses the package.
    """
    try:
        model = load_model(package, skip_load=False)
    except Exception as error:
        raise BackendError(f"Core ML cannot load {package}: {str(error).strip()[:300]}") from error

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        from PIL import Image

        given = {
            name: Image.fromarray(array[0]) if name == "pixels" else array for name, array in feeds.items()
        }
        try:
            found = model.predict(given)
        except Exception as error:
            raise BackendError(f"Core ML cannot run here: {str(error).strip()[:300]}") from error
        return {name: np.asarray(array, np.float32) for name, array in found.items()}

    return run


def check_program(program: Program, spec: GraphSpec) -> None:
    """Is the package what its page says?

    Raises:
        ParityError: other inputs, outputs, shapes or types; a tensor of more than five axes; or whole numbers
            that pass through float16, which cannot hold a large vocabulary.
        BundleError: not a package at all.
    """
    if not spec.file.endswith(SUFFIX):
        raise BundleError(f"the {spec.role} graph for Core ML is {spec.file!r}, which is no {SUFFIX}")
    for what, have, want in (
        ("inputs", program.inputs, spec.inputs),
        ("outputs", program.outputs, spec.outputs),
    ):
        found = {value.name: _page_of(value, program) for value in have}
        promised = {tensor.name: (tensor.dtype, tensor.shape) for tensor in want}
        if found != promised:
            raise ParityError(f"{spec.role}: the package has {what} {found}, the manifest says {promised}")
    types = {value.name: value for value in program.inputs}
    for operation in program.operations:
        if operation.kind == "cast":
            [source] = operation.inputs["x"]
            before = types.get(source) if isinstance(source, str) else None
            if before is not None and before.dtype == "INT32" and operation.outputs[0].dtype == "FLOAT16":
                raise ParityError(
                    f"{spec.role}: {before.name} turns whole numbers into float16, which has gaps above "
                    f"{LARGEST_HALF}; compute it in whole numbers"
                )
        for value in operation.outputs:
            types[value.name] = value
            if len(value.shape) > 5:
                raise ParityError(
                    f"{spec.role}: {value.name} has {len(value.shape)} axes; Core ML takes five"
                )


def _page_of(value: Value, program: Program) -> tuple[str, tuple[int, ...]]:
    if value.name in program.images:
        _, colours, height, width = value.shape
        return "uint8", (1, height, width, colours)
    return _TYPES.get(value.dtype, value.dtype.lower()), value.shape
