"""Our compact pair, as `tellapart train` writes it: captioner and retriever on one trunk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from tellapart.manifest import Decoding, Preprocessing
from tellapart_export.graphs import (
    DecoderSizes,
    SourceGraph,
    barred_past,
    decoder_graph,
    text_graph,
    vision_graph,
)
from tellapart_export.subject import Subject
from tellapart_export.vocabulary import write_vocabulary
from tellapart_model.checkpoint import load_checkpoint
from tellapart_model.compact import CompactPair
from tellapart_model.config import END_ID, PAD_ID, START_ID
from tellapart_model.vision import PIXEL_MEAN, PIXEL_STD

FEATURES = "features"
"""Name of the trunk's output (batch, N, C) inside the vision graph: a place to cut, not an output."""


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

    def forward(
        self, ids: Tensor, past_kv: Tensor, cross_kv: Tensor, position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids (b, 1), past_kv (2L, b, H, P, D), cross_kv -> logits (b, V), present_kv with P + 1 tokens."""
        barred = barred_past(past_kv, position)
        logits, present_kv = self.decoder.step(ids, past_kv, cross_kv, position=position, barred=barred)
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
    """The vision, decoder and text graphs of a compact pair."""
    c = pair.config
    sizes = DecoderSizes(
        layers=c.layers,
        heads=c.heads,
        image_tokens=c.image_tokens,
        head_width=c.head_width,
        vocabulary=c.vocabulary_size,
    )
    text = torch.full((2, 7), START_ID)
    text[:, -1] = END_ID
    return (
        vision_graph(VisionGraph(pair), c.image_px, sizes=sizes, embedding=c.embedding, inner=(FEATURES,)),
        decoder_graph(DecoderGraph(pair), sizes, token=START_ID),
        text_graph(TextGraph(pair), c.embedding, example=text),
    )


def open_checkpoint(folder: Path) -> Subject:
    """The compact pair in a folder.

    Raises:
        CheckpointError: no checkpoint there, damaged, or of another architecture.
        ConfigError: an unknown key in its configuration.
    """
    loaded = load_checkpoint(folder)
    pair, config = loaded.model, loaded.config
    content, vocabulary = write_vocabulary(loaded.vocabulary, max_text_tokens=min(40, config.max_length))
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> list[int]:
        words = torch.randint(END_ID + 1, config.vocabulary_size, (length - 2,), generator=draw)
        return [START_ID, *words.tolist(), END_ID]

    return Subject(
        family="compact",
        kind=("captioner", "retriever"),
        graphs=split_graphs(pair),
        preprocessing=Preprocessing(
            image_px=config.image_px, mean=(PIXEL_MEAN,) * 3, std=(PIXEL_STD,) * 3, in_graph=True
        ),
        vocabulary=vocabulary,
        files={vocabulary.file: content},
        # The decoder has positions for `max_length` tokens, of which the start mark takes one.
        decoding=Decoding(max_new_tokens=min(24, config.max_length - 1)),
        positions=config.max_length - 1,
        logits=lambda pixels, ids: pair.decoder(ids, pair.cross_kv(pair.features(pixels))),
        embed_images=lambda pixels: pair.embed_features(pair.features(pixels)),
        embed_texts=pair.embed_text,
        texts=[text(2), text(5), text(config.max_length)],
        pad_id=PAD_ID,
        parameters=sum(parameter.numel() for parameter in pair.parameters()),
        checkpoint_sha256=loaded.sha256,
        source={
            "recipe": str(loaded.extra.get("recipe", "")),
            "architecture": dataclasses.asdict(config),
        },
        licence="Apache-2.0",
    )
