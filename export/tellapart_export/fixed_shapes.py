"""A part of a network with every axis fixed, for what knows no free ones: an NPU, Apple's Neural Engine.

A batch is one picture, a text is filled up to the longest, and the decoder's past is a window of W places
whose last `position` places are real: what comes out as `present_kv` goes in again as `past_kv`, with nothing
to copy between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tellapart.backends.fixed_shapes import POSITION
from tellapart.manifest import Decoding, GraphSpec, TensorSpec
from tellapart_export.graphs import SourceGraph
from tellapart_export.subject import Subject


class WindowStep(nn.Module):
    """A decoder's step over a window."""

    def __init__(self, module: nn.Module) -> None:
        """Take the step over a past that grows."""
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor, position: Tensor, past_kv: Tensor, cross_kv: Tensor) -> Any:
        """Window in, window out: the oldest place falls off at the front."""
        logits, present = self.module(ids.long(), past_kv, cross_kv, position.long())
        return logits, present[:, :, :, 1:]


def window_of(subject: Subject, decoding: Decoding) -> int:
    """Places of the decoder's past, W: a caption of the bundle's longest, and the token that ends it."""
    return min(decoding.max_new_tokens, max(subject.positions, 1)) + 1


def fixed_spec(
    spec: GraphSpec, *, window: int, tokens: int, types: Mapping[str, str] | None = None
) -> GraphSpec:
    """The page of the same graph without free axes.

    Args:
        spec: with free axes.
        window: places of the decoder's past, W; captions have at most W - 1 tokens before the next.
        tokens: of a text, T.
        types: dtypes by those of `spec`; None leaves them as they are.
    """
    sizes = {"batch": 1, "past": window, "past_and_one": window, "tokens": tokens}
    types = types or {}

    def page(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                tensor.name,
                types.get(tensor.dtype, tensor.dtype),
                tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape),
            )
            for tensor in tensors
        )

    inputs = page(spec.inputs)
    if spec.role == "decoder":
        inputs = (inputs[0], TensorSpec(POSITION, types.get("int64", "int64"), (1,)), *inputs[1:])
    return dataclasses.replace(spec, inputs=inputs, outputs=page(spec.outputs))


def fixed_step(source: SourceGraph, *, window: int) -> SourceGraph:
    """The decoder graph over a window, ready to be exported to ONNX."""
    spec = fixed_spec(source.spec, window=window, tokens=0)
    ids = source.example[0][:1]
    past, cross = (torch.zeros(tuple(map(int, tensor.shape))) for tensor in spec.inputs[2:])
    return SourceGraph(spec, WindowStep(source.module), (ids, torch.ones(1, dtype=torch.int64), past, cross))
