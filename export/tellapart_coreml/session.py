"""The packages of a bundle without Core ML: the SDK's own session, its operations run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tellapart.backends.coreml import SUFFIX, Predict, session_of
from tellapart.backends.fixed_shapes import FixedSession, pad_id_of
from tellapart.bundle import Bundle
from tellapart.errors import BundleError, MissingExtraError, ParityError
from tellapart.manifest import GraphSpec
from tellapart_coreml.package import Program, Value, read_package

_TYPES = {"INT32": "int32", "FLOAT16": "float16", "FLOAT32": "float32", "BOOL": "bool"}

LARGEST_HALF = 2048
"""Whole numbers above this have gaps in float16."""

ELSEWHERE = ("onnxruntime, operation by operation",)
"""What stands in a session's `providers`."""


def open_elsewhere(bundle: Bundle, role: str) -> FixedSession:
    """A Core ML graph of a bundle, run by onnxruntime; see `as_onnx`.

    Raises:
        BundleError: none of this role, or its package is damaged.
        ParityError: the package is not what the manifest says.
        MissingExtraError: onnx, onnxruntime or coremltools is not installed.
    """
    spec = bundle.graph(role, "coreml")
    program = read_package(bundle.root / spec.file)
    check_program(program, spec)
    pad_id = pad_id_of(bundle, role)
    return session_of(spec, run_elsewhere(program), name=bundle.name, providers=ELSEWHERE, pad_id=pad_id)


def run_elsewhere(program: Program, *, rounded: bool = True) -> Predict:
    """What runs a program by onnxruntime; `rounded` as in `to_onnx`.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    try:
        import onnxruntime

        from tellapart_coreml.as_onnx import to_onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "quantize",
            "Running a package without Core ML needs onnx and onnxruntime, which are not installed",
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        to_onnx(program, rounded=rounded).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in program.outputs]
    halves = {value.name for value in program.inputs if value.dtype == "FLOAT16"} if rounded else set()

    def predict(feeds: Mapping[str, Any]) -> dict[str, Any]:
        given = {}
        for name, value in feeds.items():
            array = np.asarray(value)
            if name in program.images:
                array = array.transpose(2, 0, 1)[None].astype(np.float32)
            elif array.dtype.kind == "f":
                array = (array.astype(np.float16) if name in halves else array).astype(np.float32)
            else:
                array = array.astype(np.int64)
            given[name] = array
        return dict(zip(names, session.run(names, given), strict=True))

    return predict


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
