"""A `.mlpackage` as plain data: inputs, outputs, operations and every number, read without its maker.

The description is a protobuf of coremltools; the weights lie in a file of blobs, each behind a head of 64
bytes (format of coremltools' `MLModel/BlobStorage`: a mark, the type, the length, the place).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import uuid
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.backends.coreml import load_coremltools
from tellapart.errors import BundleError

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"

Array = npt.NDArray[Any]

_MARK = 0xDEADBEEF
_HEAD_BYTES = 64
_BLOB_TYPES = {1: np.float16, 2: np.float32, 3: np.uint8, 4: np.int8}
_IMMEDIATE = {"floats": np.float32, "ints": np.int32, "bools": np.bool_, "longInts": np.int64}
_BYTES = {"FLOAT16": np.float16, "UINT8": np.uint8, "INT8": np.int8, "INT16": np.int16, "UINT16": np.uint16}


@dataclasses.dataclass(frozen=True)
class Value:
    """A result inside a program."""

    name: str
    dtype: str
    """As MIL calls it: FLOAT16, FLOAT32, INT32, BOOL, ..."""
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation: names of what it reads by parameter, or a constant where it is written in place."""

    kind: str
    inputs: Mapping[str, tuple[str | Array | str, ...]]
    outputs: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """The one function of an ML program."""

    version: int
    """Specification version: 7 is iOS 16 and macOS 13."""
    opset: str
    inputs: tuple[Value, ...]
    images: frozenset[str]
    """Inputs that are pictures, RGB."""
    outputs: tuple[Value, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Array | str]
    """By name, what was stored in 8 bits turned back into float32."""
    stored: Mapping[str, str]
    """How the larger constants are stored: name -> "float16", "float32" or "int8"."""
    steps: Mapping[str, Array]
    """What separates the levels of those stored in 8 bits; broadcasts to the constant."""


def load_model(package: Path) -> Any:
    """An `MLModel` of a copy, not to be run: coremltools writes into the package that it opens.

    Args:
        package: of a bundle, whose bytes are not to change.
    """
    coremltools = load_coremltools()
    folder = tempfile.mkdtemp(prefix="tellapart-coreml-")
    try:
        copy = Path(folder) / package.name
        shutil.copytree(package, copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = coremltools.models.MLModel(str(copy), skip_model_load=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model


def save_package(model: Any, folder: Path) -> None:
    """Write an `MLModel`, which is spent afterwards; equal models become equal bytes.

    Raises:
        BundleError: the disk is full, or refuses.
    """
    try:
        model.save(str(folder))
    except (OSError, RuntimeError) as error:
        raise BundleError(
            f"cannot write {folder.name}: {str(error).strip()[:300]}; make room and try again"
        ) from error
    if model.is_temp_package:  # otherwise gone at the end of the process, hundreds of megabytes later
        shutil.rmtree(model.package_path, ignore_errors=True)
    # A map from torch's node numbers, for debuggers of another project; no part of the package.
    (folder / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    # Random names of the parts would make every export another file.
    page = folder / "Manifest.json"
    content = json.loads(page.read_text(encoding="utf-8"))
    names = {
        old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper()
        for old, entry in content["itemInfoEntries"].items()
    }
    content["itemInfoEntries"] = {names[old]: entry for old, entry in content["itemInfoEntries"].items()}
    content["rootModelIdentifier"] = names[content["rootModelIdentifier"]]
    page.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_package(folder: Path) -> Program:
    """Read a package and all its numbers.

    Raises:
        MissingExtraError: coremltools, which brings the format's description, is not installed.
        BundleError: no package there, or none that this reads.
    """
    load_coremltools()
    from coremltools.proto import Model_pb2

    try:
        spec = Model_pb2.Model()
        spec.ParseFromString((folder / MODEL).read_bytes())
        weights = folder / WEIGHTS
        blobs = np.memmap(weights, np.uint8, "r") if weights.is_file() else np.zeros(0, np.uint8)
    except Exception as error:  # the protobuf's errors have no base but this
        raise BundleError(f"{folder.name} is no Core ML package: {error}") from error
    if spec.WhichOneof("Type") != "mlProgram" or "main" not in spec.mlProgram.functions:
        raise BundleError(f"{folder.name} is no ML program with one function; export the checkpoint again")
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    constants: dict[str, Array | str] = {}
    stored: dict[str, str] = {}
    steps: dict[str, Array] = {}
    operations: list[Operation] = []
    for entry in block.operations:
        outputs = tuple(_value(item.name, item.type) for item in entry.outputs)
        name = outputs[0].name
        if entry.type == "const":
            constants[name] = found = _constant(entry.attributes["val"], blobs)
            if isinstance(found, np.ndarray) and found.size > 1 and found.dtype.kind == "f":
                stored[name] = str(found.dtype)
        elif entry.type == "constexpr_affine_dequantize":
            # A place of its own in newer files, an attribute in older ones.
            parts = {key: _constant(value, blobs) for key, value in entry.attributes.items()}
            constants[name], steps[name] = _dequantize(parts)
            stored[name] = "int8"
        else:
            operations.append(Operation(entry.type, _inputs(entry, blobs), outputs))
    pictures = {item.name for item in spec.description.input if item.type.WhichOneof("Type") == "imageType"}
    types = {value.name: value for operation in operations for value in operation.outputs}
    return Program(
        version=spec.specificationVersion,
        opset=function.opset,
        inputs=tuple(_value(item.name, item.type) for item in function.inputs),
        images=frozenset(pictures),
        outputs=tuple(types[name] for name in block.outputs),
        operations=tuple(operations),
        constants=constants,
        stored=stored,
        steps=steps,
    )


def _value(name: str, kind: Any) -> Value:
    from coremltools.proto import MIL_pb2

    tensor = kind.tensorType
    shape = tuple(int(axis.constant.size) for axis in tensor.dimensions)
    if any(axis.WhichOneof("dimension") != "constant" for axis in tensor.dimensions):
        raise BundleError(f"{name} has a free axis; packages of fixed shapes are expected")
    return Value(name, str(MIL_pb2.DataType.Name(tensor.dataType)), shape)


def _inputs(entry: Any, blobs: Array) -> dict[str, tuple[Any, ...]]:
    return {
        key: tuple(
            item.name if item.WhichOneof("binding") == "name" else _constant(item.value, blobs)
            for item in argument.arguments
        )
        for key, argument in entry.inputs.items()
    }


def _constant(value: Any, blobs: Array) -> Any:
    """A stored value: an array, or a text."""
    kind = _value("", value.type)
    if value.WhichOneof("value") == "blobFileValue":
        return _blob(blobs, int(value.blobFileValue.offset)).reshape(kind.shape)
    tensor = value.immediateValue.tensor
    which = tensor.WhichOneof("value")
    if which == "strings":
        return str(tensor.strings.values[0])
    if which == "bytes":
        found = np.frombuffer(tensor.bytes.values, _BYTES[kind.dtype])
    else:
        found = np.array(getattr(tensor, which).values, _IMMEDIATE[which])
    return found.reshape(kind.shape)


def _blob(blobs: Array, place: int) -> Array:
    head = blobs[place : place + _HEAD_BYTES]
    mark, kind = (int(number) for number in head[:8].view("<u4"))
    length, start = (int(number) for number in head[8:24].view("<u8"))
    if mark != _MARK or kind not in _BLOB_TYPES or start + length > len(blobs):
        raise BundleError(f"the weights of a Core ML package are damaged at byte {place}; export it again")
    return np.array(blobs[start : start + length]).view(_BLOB_TYPES[kind])


def _dequantize(parts: Mapping[str, Any]) -> tuple[Array, Array]:
    """(stored - zero point) * scale, along one axis; and the scale."""
    levels, scale, zero = parts["quantized_data"], parts["scale"], parts["zero_point"]
    shape = [1] * levels.ndim
    if scale.size > 1:
        shape[int(parts["axis"])] = -1
    scale = scale.astype(np.float32).reshape(shape)
    zero = zero.astype(np.float32).reshape(shape if zero.size > 1 else [1] * levels.ndim)
    found: Array = (levels.astype(np.float32) - zero) * scale
    return found, scale
