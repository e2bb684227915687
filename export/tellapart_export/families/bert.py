"""Layers in the manner of BERT, as BLIP and GIT have them in their decoders: one token with a cache.

Letters: b batch, T tokens, P past, N image tokens, H heads, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tellapart.errors import CheckpointError
from tellapart_model.caption_model import merge_heads, split_heads


def keys_values(attention: Any, states: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What one attention attends to: states (b, T, width) -> keys and values (b, H, T, D)."""
    return split_heads(attention.self.key(states), heads), split_heads(attention.self.value(states), heads)


def query_of(attention: Any, x: Tensor, heads: int) -> Tensor:
    """(b, T, width) -> (b, H, T, D)."""
    return split_heads(attention.self.query(x), heads)


def finish(layer: Any, x: Tensor) -> Tensor:
    """The feed-forward part of a layer, its sum and norm."""
    found: Tensor = layer.feed_forward_chunk(x)
    return found


def attend_with_prefix(
    query: Tensor, image: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor], barred: Tensor | None = None
) -> Tensor:
    """As `share_attention`, heads merged: query (b, H, 1, D) -> (b, 1, H * D)."""
    return merge_heads(share_attention(query, image, words, barred))


def share_attention(
    query: Tensor, image: tuple[Tensor, Tensor], words: tuple[Tensor, Tensor], barred: Tensor | None = None
) -> Tensor:
    """One softmax over image and words, without copying the image's keys and values at every token.

    Args:
        query: (b, H, T, D).
        image: keys and values (b, H, N, D).
        words: keys and values (b, H, P + 1, D).
        barred: (1, P + 1) float, added to the scores of the words.

    Returns:
        (b, H, T, D).
    """
    scaled = query * query.shape[-1] ** -0.5
    scores = [torch.matmul(scaled, keys.transpose(-1, -2)) for keys, _ in (image, words)]
    if barred is not None:
        scores[1] = scores[1] + barred
    shares = torch.cat(scores, -1).softmax(-1)
    count = image[0].shape[2]
    return torch.matmul(shares[..., :count], image[1]) + torch.matmul(shares[..., count:], words[1])


def refuse_relative_positions(config: Any, folder: Any) -> None:
    """Only tables of positions are known here.

    Raises:
        CheckpointError: the configuration asks for relative ones.
    """
    kind = getattr(config, "position_embedding_type", "absolute")
    if kind != "absolute":
        raise CheckpointError(f"{folder}: position_embedding_type {kind!r} is not supported, only 'absolute'")
