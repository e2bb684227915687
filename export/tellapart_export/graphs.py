"""The graphs of a bundle as data: names, shapes and free axes, the same for every family.

A family brings modules that keep to these pages; the exporter, the parity check and the device then need
to know nothing about it. Letters in shapes: L decoder layers, H heads, N image tokens, D width of a head,
P past tokens, T text tokens, E width of the embedding, V vocabulary.

One page fits decoders with cross-attention and decoders that read the image as a prefix: `cross_kv` holds
what each layer attends to besides the tokens of the caption, computed once an image. A cross-attention has a
softmax of its own over it, a prefix shares one softmax with the past; which of the two is the decoder
graph's affair.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from tellapart.manifest import GraphSpec, Preprocessing, TensorSpec

BARRED = -1e4
"""Logit of a token that cannot come; finite, so that its log-probability is a number too."""


@dataclasses.dataclass(frozen=True)
class SourceGraph:
    """A part of a network, ready to be exported."""

    spec: GraphSpec
    """Its page in the manifest. Axes named by a word are free."""

    module: nn.Module
    """Tensors in the order of the spec's inputs -> tensors in the order of its outputs and `inner`."""

    example: tuple[Tensor, ...]
    """Inputs to trace with; no free axis is 0 or 1, which an exporter would take for a constant."""

    inner: tuple[str, ...] = ()
    """Names of further results that keep their name inside the graph without being its outputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """L, H, N, D and V of a decoder."""

    layers: int
    heads: int
    image_tokens: int
    head_width: int
    vocabulary: int

    @property
    def cross(self) -> TensorSpec:
        """The page of `cross_kv`."""
        shape = (2 * self.layers, "batch", self.heads, self.image_tokens, self.head_width)
        return TensorSpec("cross_kv", "float32", shape)


class ScaledPixels(nn.Module):
    """Pixels as the device hands them over -> pixels as a network wants them."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Take mean and standard deviation, both on the scale 0 to 255."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, s, s, 3) uint8 -> (b, 3, s, s) float32."""
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std


def position_row(table: Tensor, past_kv: Tensor, position: Tensor | None, *, first: int = 0) -> Tensor:
    """The row of a table of positions that belongs to the next token.

    Args:
        table: (positions, width).
        past_kv: (2L, b, H, P, D).
        position: (1,) int64, tokens of the past that are real; None is all of them.
        first: row of the first token.

    Returns:
        (1, width).
    """
    place = first + past_kv.shape[3]
    # Not a slice, whose end an exporter takes for unknown: one token would not be known to be one.
    return table.narrow(0, place, 1) if position is None else table[position + first]


def barred_past(past_kv: Tensor, position: Tensor | None) -> Tensor | None:
    """What to add to the scores of past and next token so that only the last `position` of the past are seen.

    Runtimes of fixed shapes get a window of P places whose real tokens lie at its end.

    Args:
        past_kv: (2L, b, H, P, D).
        position: (1,) int64, or None: all of the past is real.

    Returns:
        (1, P + 1) float32 of 0 and `BARRED`; None where nothing is to be added.
    """
    if position is None:
        return None
    window = past_kv.shape[3]
    places = torch.arange(window + 1, dtype=position.dtype)
    return torch.where(places < window - position, BARRED, 0.0).to(torch.float32)[None]


def vision_graph(
    module: nn.Module,
    image_px: int,
    *,
    sizes: DecoderSizes | None = None,
    embedding: int | None = None,
    inner: tuple[str, ...] = (),
) -> SourceGraph:
    """The vision graph.

    Args:
        module: pixels (b, s, s, 3) uint8 -> cross_kv (2L, b, H, N, D) if `sizes`, embedding (b, E) if
            `embedding`, then what `inner` names.
        image_px: s.
        sizes: of the decoder, for a captioner.
        embedding: E, for a retriever.
        inner: see `SourceGraph`.
    """
    outputs: tuple[TensorSpec, ...] = () if sizes is None else (sizes.cross,)
    if embedding is not None:
        outputs += (TensorSpec("embedding", "float32", ("batch", embedding)),)
    pixels = TensorSpec("pixels", "uint8", ("batch", image_px, image_px, 3))
    draw = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, (2, image_px, image_px, 3), dtype=torch.uint8, generator=draw)
    return SourceGraph(_spec("vision", (pixels,), outputs), module, (example,), inner=inner)


def decoder_graph(module: nn.Module, sizes: DecoderSizes, *, token: int) -> SourceGraph:
    """The decoder graph: one token with a cache.

    Args:
        module: ids (b, 1), past_kv (2L, b, H, P, D), cross_kv -> logits (b, V), present_kv with P + 1 tokens.
        sizes: L, H, N, D and V.
        token: any id, to trace with.
    """
    rows, heads, width = 2 * sizes.layers, sizes.heads, sizes.head_width
    inputs = (
        TensorSpec("ids", "int64", ("batch", 1)),
        TensorSpec("past_kv", "float32", (rows, "batch", heads, "past", width)),
        sizes.cross,
    )
    outputs = (
        TensorSpec("logits", "float32", ("batch", sizes.vocabulary)),
        TensorSpec("present_kv", "float32", (rows, "batch", heads, "past_and_one", width)),
    )
    draw = torch.Generator().manual_seed(0)
    example = (
        torch.full((2, 1), token),
        torch.randn(rows, 2, heads, 5, width, generator=draw),
        torch.randn(rows, 2, heads, sizes.image_tokens, width, generator=draw),
    )
    return SourceGraph(_spec("decoder", inputs, outputs), module, example)


def text_graph(module: nn.Module, embedding: int, *, example: Tensor) -> SourceGraph:
    """The text graph.

    Args:
        module: ids (b, T) -> embedding (b, E) of unit length.
        embedding: E.
        example: ids (b, T) of whole texts, marks included, to trace with.
    """
    ids = TensorSpec("ids", "int64", ("batch", "tokens"))
    row = TensorSpec("embedding", "float32", ("batch", embedding))
    return SourceGraph(_spec("text", (ids,), (row,)), module, (example,))


def _spec(role: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphSpec:
    return GraphSpec(role=role, target="onnx", file=f"{role}.onnx", inputs=inputs, outputs=outputs)
