"""The same graph elsewhere: an ML program -> an ONNX model for onnxruntime, operation by operation.

Core ML runs on Apple's systems alone. What it would run can be proved elsewhere all the same, but for its
own arithmetic: here every operation of the package that was written is carried over with its own numbers,
and each result that the program holds in float16 is rounded to it; sums inside an operation are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tellapart.errors import ParityError
from tellapart_coreml.package import Operation, Program, Value

OPSET = 20
IR_VERSION = 9
_END = 2**31 - 1

_SAME = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "real_div": "Div", "maximum": "Max", "minimum": "Min",
    "pow": "Pow", "less": "Less", "greater": "Greater", "less_equal": "LessOrEqual", "equal": "Equal",
    "greater_equal": "GreaterOrEqual", "logical_and": "And", "logical_or": "Or", "logical_not": "Not",
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "sqrt": "Sqrt", "erf": "Erf",
    "abs": "Abs", "identity": "Identity",
}  # fmt: skip
"""Operations of one or two operands, x and y, that ONNX has as well."""

_REDUCTIONS = {"reduce_mean": "ReduceMean", "reduce_sum": "ReduceSum", "reduce_l2_norm": "ReduceL2"}
_CASTS = {"fp16": TensorProto.FLOAT, "fp32": TensorProto.FLOAT, "bool": TensorProto.BOOL}


def to_onnx(program: Program, *, rounded: bool = True) -> Any:
    """The ONNX model of a program, its inputs and outputs under their own names.

    Args:
        program: see `read_package`.
        rounded: results that the program holds in float16 are rounded to it.

    Returns:
        An `onnx.ModelProto`: floats are float32, whole numbers int64, pictures (1, 3, s, s) float32 of 0 to
        255.

    Raises:
        ParityError: an operation that is not known here.
    """
    writer = _Writer(program, rounded=rounded)
    for operation in program.operations:
        writer.write(operation)
    graph = helper.make_graph(
        writer.nodes,
        "program",
        [_port(value.name, value) for value in program.inputs],
        [_port(value.name, value) for value in program.outputs],
        writer.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


def _port(name: str, value: Value) -> Any:
    return helper.make_tensor_value_info(name, _type(value.dtype), list(value.shape))


def _type(dtype: str) -> int:
    if dtype.startswith("FLOAT"):
        return int(TensorProto.FLOAT)
    return int(TensorProto.BOOL if dtype == "BOOL" else TensorProto.INT64)


class _Writer:
    """ONNX nodes of one program, in its order."""

    def __init__(self, program: Program, *, rounded: bool) -> None:
        self.program, self.rounded = program, rounded
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._written: set[str] = set()
        self._operation: Operation

    def write(self, operation: Operation) -> None:
        """Add what one operation becomes."""
        self._operation = operation
        write = _WRITERS.get(operation.kind)
        if write is None:
            raise ParityError(
                f"the Core ML operation {operation.kind!r} is not known to the proof "
                "(tellapart_coreml/as_onnx.py); nothing that was not run is published"
            )
        names = [value.name for value in operation.outputs]
        raw = [
            f"{value.name}::exact" if self.rounded and value.dtype == "FLOAT16" else value.name
            for value in operation.outputs
        ]
        write(self, raw)
        for exact, name in zip(raw, names, strict=True):
            if exact != name:
                half = self.add("Cast", [exact], to=TensorProto.FLOAT16)
                self.node("Cast", [half], [name], to=TensorProto.FLOAT)

    def node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Add a node."""
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node with one result that nobody else names."""
        name = f"{self._operation.outputs[0].name}::{len(self.nodes)}"
        self.node(kind, inputs, [name], **attributes)
        return name

    def has(self, key: str) -> bool:
        """Whether the operation has this parameter."""
        return bool(self._operation.inputs.get(key))

    def constant(self, key: str, default: Any = None) -> Any:
        """The value of a parameter that has to be known now: an array, or a text."""
        if not self.has(key):
            return default
        found = self._operation.inputs[key][0]
        value = self.program.constants.get(found) if isinstance(found, str) else found
        if value is None:
            raise ParityError(f"{self._operation.kind}: its {key} is computed, which the proof does not know")
        return value

    def whole(self, key: str, default: int = 0) -> int:
        """A parameter as a number."""
        return int(np.asarray(self.constant(key, default)).item())

    def wholes(self, key: str) -> list[int]:
        """A parameter as a list of numbers."""
        return [int(number) for number in np.asarray(self.constant(key, ())).ravel()]

    def tensor(self, key: str, index: int = 0) -> str:
        """The ONNX name of what a parameter reads."""
        found = self._operation.inputs[key][index]
        if not isinstance(found, str):
            return self.store(np.asarray(found))
        if found in self.program.constants and found not in self._written:
            self._written.add(found)
            self.store(np.asarray(self.program.constants[found]), found)
        return found

    def store(self, array: Any, name: str = "") -> str:
        """An initializer; halves become floats, whole numbers int64."""
        name = name or f"{self._operation.outputs[0].name}::value{len(self.initializers)}"
        kinds = {"f": np.float32, "b": np.bool_}
        array = np.ascontiguousarray(array).astype(kinds.get(array.dtype.kind, np.int64))
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def list(self, numbers: Any) -> str:
        """An initializer of whole numbers, one axis."""
        return self.store(np.asarray(list(numbers), np.int64))

    @property
    def out(self) -> Value:
        """The operation's first result."""
        return self._operation.outputs[0]


def _same(w: _Writer, out: list[str]) -> None:
    operands = [w.tensor(key) for key in ("x", "y") if w.has(key)]
    w.node(_SAME[w._operation.kind], operands, out)


def _not_equal(w: _Writer, out: list[str]) -> None:
    w.node("Not", [w.add("Equal", [w.tensor("x"), w.tensor("y")])], out)


def _cast(w: _Writer, out: list[str]) -> None:
    w.node("Cast", [w.tensor("x")], out, to=_CASTS.get(w.constant("dtype"), TensorProto.INT64))


def _select(w: _Writer, out: list[str]) -> None:
    w.node("Where", [w.tensor("cond"), w.tensor("a"), w.tensor("b")], out)


def _reshape(w: _Writer, out: list[str]) -> None:
    # Every shape is fixed, so the result's own says all that reshape, squeeze and expand_dims could.
    w.node("Reshape", [w.tensor("x"), w.list(w.out.shape)], out)


def _transpose(w: _Writer, out: list[str]) -> None:
    perm = w.wholes("perm")
    w.node("Transpose", [w.tensor("x")], out, perm=[axis % len(perm) for axis in perm])


def _concat(w: _Writer, out: list[str]) -> None:
    if np.asarray(w.constant("interleave", False)).item():
        raise ParityError("concat: interleaved, which the proof does not know")
    names = [w.tensor("values", index) for index in range(len(w._operation.inputs["values"]))]
    w.node("Concat", names, out, axis=w.whole("axis"))


def _stack(w: _Writer, out: list[str]) -> None:
    axis = w.whole("axis")
    place = w.list([axis])
    count = len(w._operation.inputs["values"])
    names = [w.add("Unsqueeze", [w.tensor("values", index), place]) for index in range(count)]
    w.node("Concat", names, out, axis=axis)


def _split(w: _Writer, out: list[str]) -> None:
    axis = w.whole("axis")
    sizes = [value.shape[axis] for value in w._operation.outputs]
    w.node("Split", [w.tensor("x"), w.list(sizes)], out, axis=axis)


def _slice(w: _Writer, out: list[str]) -> None:
    begin, end = w.wholes("begin"), w.wholes("end")
    step = w.wholes("stride") or [1] * len(begin)
    masks = [w.wholes(key) or [0] * len(begin) for key in ("begin_mask", "end_mask", "squeeze_mask")]
    starts, ends = [], []
    for axis, (no_begin, no_end, single) in enumerate(zip(*masks, strict=True)):
        first, last = begin[axis], end[axis]
        if single:
            last = first + 1 or _END
        elif step[axis] < 0 and (no_begin or no_end):
            raise ParityError("slice_by_index: backwards, which the proof does not know")
        starts.append(0 if no_begin and not single else first)
        ends.append(_END if no_end and not single else last)
    inputs = [w.tensor("x"), w.list(starts), w.list(ends), w.list(range(len(begin))), w.list(step)]
    w.node("Reshape", [w.add("Slice", inputs), w.list(w.out.shape)], out)


def _gather(w: _Writer, out: list[str]) -> None:
    if w.whole("batch_dims"):
        raise ParityError("gather: batch_dims, which the proof does not know")
    w.node("Gather", [w.tensor("x"), w.tensor("indices")], out, axis=w.whole("axis"))


def _gather_along(w: _Writer, out: list[str]) -> None:
    w.node("GatherElements", [w.tensor("x"), w.tensor("indices")], out, axis=w.whole("axis"))


def _linear(w: _Writer, out: list[str]) -> None:
    turned = w.store(np.asarray(w.constant("weight")).T)
    product = w.add("MatMul", [w.tensor("x"), turned])
    w.node("Add", [product, w.tensor("bias")], out) if w.has("bias") else w.node("Identity", [product], out)


def _matmul(w: _Writer, out: list[str]) -> None:
    sides = []
    for key in ("x", "y"):
        name = w.tensor(key)
        if w.whole(f"transpose_{key}"):
            rank = _rank(w, key)
            name = w.add("Transpose", [name], perm=[*range(rank - 2), rank - 1, rank - 2])
        sides.append(name)
    w.node("MatMul", sides, out)


def _rank(w: _Writer, key: str) -> int:
    found = w._operation.inputs[key][0]
    if not isinstance(found, str):
        return int(np.ndim(found))
    if found in w.program.constants:
        return int(np.ndim(np.asarray(w.program.constants[found])))
    values = [*w.program.inputs, *(value for op in w.program.operations for value in op.outputs)]
    return next(len(value.shape) for value in values if value.name == found)


def _conv(w: _Writer, out: list[str]) -> None:
    kind = w.constant("pad_type", "valid")
    if kind not in ("custom", "valid"):
        raise ParityError(f"conv: padding {kind!r}, which the proof does not know")
    pads = w.wholes("pad") if kind == "custom" else [0, 0, 0, 0]
    inputs = [w.tensor("x"), w.tensor("weight")] + ([w.tensor("bias")] if w.has("bias") else [])
    w.node(
        "Conv",
        inputs,
        out,
        strides=w.wholes("strides") or [1, 1],
        pads=[*pads[0::2], *pads[1::2]],  # begin and end of each axis -> all begins, all ends
        dilations=w.wholes("dilations") or [1, 1],
        group=w.whole("groups", 1),
    )


def _pad(w: _Writer, out: list[str]) -> None:
    if w.constant("mode", "constant") != "constant":
        raise ParityError("pad: not by a constant, which the proof does not know")
    pads = w.wholes("pad")
    pads = [0] * (2 * len(w.out.shape) - len(pads)) + pads  # of the last axes only
    filler = w.store(np.asarray(w.constant("constant_val", np.float32(0)), np.float32))
    w.node("Pad", [w.tensor("x"), w.list([*pads[0::2], *pads[1::2]]), filler], out)


def _clip(w: _Writer, out: list[str]) -> None:
    w.node("Clip", [w.tensor("x"), w.tensor("alpha"), w.tensor("beta")], out)


def _softmax(w: _Writer, out: list[str]) -> None:
    w.node("Softmax", [w.tensor("x")], out, axis=w.whole("axis", -1))


def _layer_norm(w: _Writer, out: list[str]) -> None:
    rank = len(w.out.shape)
    axes = sorted(axis % rank for axis in w.wholes("axes"))
    if axes != list(range(axes[0], rank)):
        raise ParityError("layer_norm: over axes that are not the last, which the proof does not know")
    ones = np.ones(w.out.shape[axes[0] :], np.float32)
    gain = w.tensor("gamma") if w.has("gamma") else w.store(ones)
    inputs = [w.tensor("x"), gain] + ([w.tensor("beta")] if w.has("beta") else [])
    epsilon = float(np.asarray(w.constant("epsilon", 1e-5)).item())
    w.node("LayerNormalization", inputs, out, axis=axes[0], epsilon=epsilon)


def _gelu(w: _Writer, out: list[str]) -> None:
    mode, x = w.constant("mode", "EXACT"), w.tensor("x")
    if mode == "SIGMOID_APPROXIMATION":
        gate = w.add("Sigmoid", [w.add("Mul", [x, w.store(np.float32(1.702))])])
        w.node("Mul", [x, gate], out)
    else:
        w.node("Gelu", [x], out, approximate="none" if mode == "EXACT" else "tanh")


def _silu(w: _Writer, out: list[str]) -> None:
    w.node("Mul", [w.tensor("x"), w.add("Sigmoid", [w.tensor("x")])], out)


def _rsqrt(w: _Writer, out: list[str]) -> None:
    epsilon = w.store(np.asarray(w.constant("epsilon", 1e-12), np.float32))
    w.node("Reciprocal", [w.add("Sqrt", [w.add("Add", [w.tensor("x"), epsilon])])], out)


def _square(w: _Writer, out: list[str]) -> None:
    x = w.tensor("x")
    w.node("Mul", [x, x], out)


def _reduce(w: _Writer, out: list[str]) -> None:
    inputs = [w.tensor("x")] + ([w.list(w.wholes("axes"))] if w.has("axes") else [])
    w.node(_REDUCTIONS[w._operation.kind], inputs, out, keepdims=w.whole("keep_dims"))


def _argmax(w: _Writer, out: list[str]) -> None:
    w.node("ArgMax", [w.tensor("x")], out, axis=w.whole("axis", -1), keepdims=w.whole("keep_dims"))


def _tile(w: _Writer, out: list[str]) -> None:
    w.node("Tile", [w.tensor("x"), w.list(w.wholes("reps"))], out)


def _fill_like(w: _Writer, out: list[str]) -> None:
    value = np.asarray(w.constant("value"))
    w.node("Identity", [w.store(np.full(w.out.shape, value))], out)


def _quantize(w: _Writer, out: list[str]) -> None:
    # Whole numbers in floats: of others onnxruntime makes products of bytes, whose sums overflow on some x86.
    if w.constant("output_dtype") != "int8":
        raise ParityError("quantize: to other than int8, which the proof does not know")
    steps = w.add("Round", [w.add("Div", [w.tensor("input"), w.tensor("scale")])])
    if w.has("zero_point"):
        steps = w.add("Add", [steps, w.store(np.float32(w.whole("zero_point")))])
    w.node("Clip", [steps, w.store(np.float32(-128)), w.store(np.float32(127))], out)


def _dequantize(w: _Writer, out: list[str]) -> None:
    steps = w.tensor("input")
    if w.has("zero_point"):
        steps = w.add("Sub", [steps, w.store(np.float32(w.whole("zero_point")))])
    w.node("Mul", [steps, w.tensor("scale")], out)


_WRITERS: dict[str, Callable[[_Writer, list[str]], None]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "not_equal": _not_equal,
    "cast": _cast,
    "select": _select,
    "transpose": _transpose,
    "concat": _concat,
    "stack": _stack,
    "split": _split,
    "slice_by_index": _slice,
    "gather": _gather,
    "gather_along_axis": _gather_along,
    "linear": _linear,
    "matmul": _matmul,
    "conv": _conv,
    "pad": _pad,
    "clip": _clip,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "silu": _silu,
    "rsqrt": _rsqrt,
    "square": _square,
    "reduce_argmax": _argmax,
    "tile": _tile,
    "fill_like": _fill_like,
    "quantize": _quantize,
    "dequantize": _dequantize,
}
