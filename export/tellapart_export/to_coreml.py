"""A part of a network -> a Core ML package: an ML program of fixed shapes, in float16.

Apple's Neural Engine takes fixed shapes only. So a batch is one picture, a text is filled up to the longest,
and the decoder's past is a window whose last `position` places are real: what comes out as `present_kv` goes
in again as `past_kv`, with nothing to copy between. The pixels are a picture input, scaled inside.

It is converted from `torch.export`; where coremltools does not know what that left in the graph (it
stumbles over `alias`), from a TorchScript trace.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tellapart.backends.coreml import SUFFIX, load_coremltools
from tellapart.errors import ParityError
from tellapart.manifest import GraphSpec, TensorSpec
from tellapart_coreml.package import save_package
from tellapart_export.fixed_shapes import WindowStep, fixed_spec
from tellapart_export.graphs import SourceGraph

LEAST_SYSTEM = "iOS16"
"""The first with float16 inputs and 8-bit weights in ML programs; macOS 13 has the same."""


class _Eye(nn.Module):
    def __init__(self, module: nn.Module, results: int) -> None:
        super().__init__()
        self.module, self.results = module, results

    def forward(self, pixels: Tensor) -> Any:
        """Pixels (1, 3, s, s) float of 0 to 255, as Core ML hands a picture over."""
        found = self.module(pixels.permute(0, 2, 3, 1))
        if not isinstance(found, tuple):
            return found
        return found[: self.results] if self.results > 1 else found[0]


class _Reader(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor) -> Any:
        """Ids (1, T) int32."""
        return self.module(ids.long())


def coreml_spec(spec: GraphSpec, *, window: int, tokens: int, half: bool = True) -> GraphSpec:
    """The page of the same graph for Core ML.

    Args:
        spec: with free axes.
        window: places of the decoder's past, W; captions have at most W - 1 tokens before the next.
        tokens: of a text, T.
        half: floats are float16 (else float32).
    """
    floats = "float16" if half else "float32"
    types = {"uint8": "uint8", "int64": "int32", "float32": floats}
    page = fixed_spec(spec, window=window, tokens=tokens, types=types)
    return dataclasses.replace(page, target="coreml", file=str(PurePosixPath(spec.file).with_suffix(SUFFIX)))


def write_coreml(source: SourceGraph, spec: GraphSpec, out: Path) -> None:
    """Write the package of one graph.

    Args:
        source: what to export.
        spec: its page, see `coreml_spec`; says the precision as well.
        out: folder of the package, which must not exist.

    Raises:
        MissingExtraError: coremltools is not installed.
        ParityError: it cannot convert the graph.
        BundleError: the disk is full, or refuses.
    """
    coremltools = load_coremltools()
    module, example = _fixed_module(source, spec)
    half = all(tensor.dtype != "float32" for tensor in spec.outputs)
    types = coremltools.precision
    settings: dict[str, Any] = {
        "inputs": [_input(coremltools, tensor) for tensor in spec.inputs],
        "outputs": [
            coremltools.TensorType(name=tensor.name, dtype=np.dtype(tensor.dtype).type)
            for tensor in spec.outputs
        ],
        "convert_to": "mlprogram",
        "compute_precision": types.FLOAT16 if half else types.FLOAT32,
        "minimum_deployment_target": getattr(coremltools.target, LEAST_SYSTEM),
        "skip_model_load": True,
    }
    failures: list[str] = []
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        model = _convert(coremltools, module, example, settings, failures)
        gc.collect()  # it leaves temporary folders to the collector, which warns of that
    if model is None:
        raise ParityError(f"{spec.role}: coremltools cannot convert it ({'; '.join(failures)})")
    save_package(model, out)


def _convert(
    coremltools: Any,
    module: nn.Module,
    example: tuple[Tensor, ...],
    settings: dict[str, Any],
    failures: list[str],
) -> Any:
    """The `MLModel`; or None, and what went wrong on each way added to `failures`."""
    for trace in (_exported, _traced):
        try:
            return coremltools.convert(trace(module, example), **settings)
        except Exception as error:  # the converter's errors share no base but this
            failures.append(f"{type(error).__name__}: {str(error).strip()[:200]}")
    return None


def _fixed_module(source: SourceGraph, spec: GraphSpec) -> tuple[nn.Module, tuple[Tensor, ...]]:
    # A copy: training mode and gradients of the caller's network are not ours to change.
    inner = copy.deepcopy(source.module).eval().requires_grad_(False)
    if spec.role == "vision":
        _, side, _, _ = spec.inputs[0].shape
        pixels = source.example[0][:1].permute(0, 3, 1, 2).float().contiguous()
        if pixels.shape[-1] != side:
            raise ParityError(f"vision: an example of {pixels.shape[-1]} px for a page of {side} px")
        return _Eye(inner, len(spec.outputs)).eval(), (pixels,)
    shapes = [tuple(int(axis) for axis in tensor.shape) for tensor in spec.inputs]
    first = int(source.example[0].flatten()[0])
    ids = torch.full(shapes[0], first, dtype=torch.int32)
    if spec.role == "text":
        return _Reader(inner).eval(), (ids,)
    past, cross = (torch.zeros(shape) for shape in shapes[2:])
    return WindowStep(inner).eval(), (ids, torch.ones(1, dtype=torch.int32), past, cross)


def _exported(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return torch.export.export(module, example).run_decompositions({})


def _traced(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        trace: Any = torch.jit.trace
        return trace(module, example, check_trace=False)


def _input(coremltools: Any, tensor: TensorSpec) -> Any:
    if tensor.name == "pixels":
        _, height, width, colours = tensor.shape
        layout = coremltools.colorlayout.RGB
        shape = (1, colours, height, width)
        return coremltools.ImageType(name="pixels", shape=shape, color_layout=layout)
    return coremltools.TensorType(name=tensor.name, shape=tensor.shape, dtype=np.dtype(tensor.dtype).type)
