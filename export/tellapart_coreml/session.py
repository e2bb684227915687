"""A package of fixed shapes behind the face of the other runtimes: free batch, a past that grows.

On a device an app keeps the window of the past itself: it hands in what it got. Here the ordinary decoding
loop is to be proved on it, which knows no window, so it is filled from the end and cut again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.bundle import Bundle
from tellapart.errors import BackendError, BundleError, ClosedError, ParityError
from tellapart.manifest import GraphSpec, TensorSpec
from tellapart_coreml.as_onnx import to_onnx
from tellapart_coreml.package import SUFFIX, Program, Value, load_model, read_package

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Fixed inputs by name -> float32 outputs by name; pixels are (1, s, s, 3) uint8."""

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
        self.spec, self._run, self._pad_id = spec, run, pad_id
        self.providers = (where,)
        self._closed = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs, row by row; see `backends.Session.run`."""
        if self._closed:
            raise ClosedError(f"the {self.spec.role} graph was closed; open another")
        run = {"vision": self._look, "decoder": self._step, "text": self._read}[self.spec.role]
        rows = [run(row) for row in _rows(feeds)]
        return {
            name: np.concatenate([row[name] for row in rows], axis=1 if name.endswith("_kv") else 0)
            for name in rows[0]
        }

    def run_quietly(self, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
        """As `run`, and None where the graph refuses."""
        try:
            return self.run(feeds)
        except BackendError:
            return None

    def close(self) -> None:
        """Give the memory back."""
        self._closed, self._run = True, lambda feeds: {}

    def _look(self, row: Mapping[str, Array]) -> dict[str, Array]:
        return self._run({"pixels": row["pixels"]})

    def _read(self, row: Mapping[str, Array]) -> dict[str, Array]:
        length = _size(self.spec.inputs[0].shape[1])
        given = row["ids"].shape[1]
        if given > length:
            raise BackendError(f"the text graph for Core ML takes {length} tokens, got {given}")
        ids = np.full((1, length), self._pad_id, np.int32)
        ids[:, :given] = row["ids"]
        return self._run({"ids": ids})

    def _step(self, row: Mapping[str, Array]) -> dict[str, Array]:
        shape = next(tensor.shape for tensor in self.spec.inputs if tensor.name == "past_kv")
        window, past = _size(shape[3]), row["past_kv"].shape[3]
        if past >= window:
            raise BackendError(
                f"the decoder for Core ML has a window of {window} tokens, got a past of {past}"
            )
        held = np.zeros(tuple(map(_size, shape)), np.float32)
        held[:, :, :, window - past :] = row["past_kv"]
        found = self._run(
            {
                "ids": row["ids"].astype(np.int32),
                "position": np.array([past], np.int32),
                "past_kv": held,
                "cross_kv": row["cross_kv"],
            }
        )
        return {**found, "present_kv": found["present_kv"][:, :, :, window - past - 1 :]}


def open_coreml(bundle: Bundle, role: str) -> CoremlSession:
    """A Core ML graph of a bundle, run by onnxruntime; see `as_onnx`.

    Raises:
        BundleError: none of this role, or its package is damaged.
        ParityError: the package is not what the manifest says.
    """
    spec = bundle.graph(role, "coreml")
    program = read_package(bundle.root / spec.file)
    check_program(program, spec)
    pad_id = 0
    if role == "text":
        from tellapart.tokenizer import Tokenizer

        pad_id = Tokenizer.from_bundle(bundle).pad_id
    return CoremlSession(
        spec, run_elsewhere(program), where="onnxruntime, operation by operation", pad_id=pad_id
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


def fixed(tensor: TensorSpec, *, dtype: str, **axes: int) -> TensorSpec:
    """A page of fixed shape: the free axes as given, "batch" 1."""
    sizes = {"batch": 1, **axes}
    shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape)
    return TensorSpec(tensor.name, dtype, shape)


def _rows(feeds: Mapping[str, Array]) -> list[dict[str, Array]]:
    """A feed for each row of a batch."""
    axes = {name: 1 if name.endswith("_kv") else 0 for name in feeds}
    count = next(array.shape[axes[name]] for name, array in feeds.items())
    return [
        {name: array.take([row], axis=axes[name]) for name, array in feeds.items()} for row in range(count)
    ]


def _size(axis: int | str) -> int:
    if not isinstance(axis, int):
        raise BundleError(f"a Core ML graph has a free axis {axis!r}; export the checkpoint again")
    return axis
