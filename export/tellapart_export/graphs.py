"""The compact pair cut into the graphs of a bundle: what each one computes, its names and free axes, as data.

Letters in shapes: L decoder layers, H heads, N image tokens, D width of a head, P past tokens, T text tokens,
E width of the embedding, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from tellapart.manifest import GraphSpec, TensorSpec
from tellapart_model.compact import CompactPair
from tellapart_model.config import END_ID, START_ID

FEATURES = "features"
"""Name of the trunk's output (batch, N, C) inside the vision graph: a place to cut, not an output."""


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


class VisionGraph(nn.Module):
    """Pixels -> what the decoder attends to, and the image's unit row."""

    def __init__(self, pair: CompactPair) -> None:
        """Take the trunk and both heads of `pair`."""
        super().__init__()
        self.pair = pair

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (b, s, s, 3) uint8 -> cross_kv (2L, b, H, N, D), embedding (b, E), features (b, N, C)."""
        features = self.pair.features(pixels)
        return self.pair.cross_kv(features), self.pair.embed_features(features), features


class DecoderGraph(nn.Module):
    """One token with a cache."""

    def __init__(self, pair: CompactPair) -> None:
        """Take the decoder of `pair`."""
        super().__init__()
        self.decoder = pair.decoder

    def forward(self, ids: Tensor, past_kv: Tensor, cross_kv: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (b, 1), past_kv (2L, b, H, P, D), cross_kv -> logits (b, V), present_kv with P + 1 tokens."""
        logits, present_kv = self.decoder.step(ids, past_kv, cross_kv)
        return logits, present_kv


class TextGraph(nn.Module):
    """Token ids -> the text's unit row."""

    def __init__(self, pair: CompactPair) -> None:
        """Take the text tower of `pair`."""
        super().__init__()
        self.pair = pair

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (b, T), padded with 0 -> embedding (b, E)."""
        return self.pair.embed_text(ids)


def split_graphs(pair: CompactPair) -> tuple[SourceGraph, ...]:
    """The vision, decoder and text graphs of a compact pair, for the target "onnx"."""
    c = pair.config
    kv = 2 * c.layers
    pixels = TensorSpec("pixels", "uint8", ("batch", c.image_px, c.image_px, 3))
    cross = TensorSpec("cross_kv", "float32", (kv, "batch", c.heads, c.image_tokens, c.head_width))
    past = TensorSpec("past_kv", "float32", (kv, "batch", c.heads, "past", c.head_width))
    present = TensorSpec("present_kv", "float32", (kv, "batch", c.heads, "past_and_one", c.head_width))
    logits = TensorSpec("logits", "float32", ("batch", c.vocabulary_size))
    embedding = TensorSpec("embedding", "float32", ("batch", c.embedding))
    token, tokens = TensorSpec("ids", "int64", ("batch", 1)), TensorSpec("ids", "int64", ("batch", "tokens"))

    draw = torch.Generator().manual_seed(0)
    text = torch.full((2, 7), START_ID)
    text[:, -1] = END_ID
    return (
        SourceGraph(
            _spec("vision", (pixels,), (cross, embedding)),
            VisionGraph(pair),
            (torch.randint(0, 256, (2, c.image_px, c.image_px, 3), dtype=torch.uint8, generator=draw),),
            inner=(FEATURES,),
        ),
        SourceGraph(
            _spec("decoder", (token, past, cross), (logits, present)),
            DecoderGraph(pair),
            (
                torch.full((2, 1), START_ID),
                torch.randn(kv, 2, c.heads, 5, c.head_width, generator=draw),
                torch.randn(kv, 2, c.heads, c.image_tokens, c.head_width, generator=draw),
            ),
        ),
        SourceGraph(_spec("text", (tokens,), (embedding,)), TextGraph(pair), (text,)),
    )


def _spec(role: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphSpec:
    return GraphSpec(role=role, target="onnx", file=f"{role}.onnx", inputs=inputs, outputs=outputs)
