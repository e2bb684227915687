"""The caption decoder: a small pre-norm transformer with cross-attention and tied embeddings.

Axis letters: b batch, t tokens, p past tokens, n image tokens, h heads, d head width, w width, v vocabulary,
l layers. Keys and values travel packed as (2l, b, h, n, d): row 2i holds the keys of layer i, row 2i + 1 its
values (five axes at most, as Core ML wants).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tellapart_model.config import CompactConfig


def _is_one(tokens: int) -> bool:
    """Whether it is one token: turned or not, its numbers lie in the same places, and a copy is saved."""
    return isinstance(tokens, int) and tokens == 1  # tracing, a size is a tensor or a symbol


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(b, t, w) -> (b, h, t, d)."""
    b, t, w = x.shape
    if _is_one(t):
        return x.reshape(b, heads, 1, w // heads)
    return x.reshape(b, t, heads, w // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(b, h, t, d) -> (b, t, w)."""
    b, h, t, d = x.shape
    if _is_one(t):
        return x.reshape(b, 1, h * d)
    return x.transpose(1, 2).reshape(b, t, h * d)


def attend(query: Tensor, keys: Tensor, values: Tensor, barred: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention: (b, h, t, d), (b, h, n, d) twice -> (b, h, t, d).

    Written out so that the exported graph is MatMul, Softmax, MatMul and nothing else; on CPUs the backward
    pass is also several times faster than that of torch's fused kernel at these small sizes.

    Args:
        query: (b, h, t, d).
        keys: (b, h, n, d).
        values: (b, h, n, d).
        barred: (t, n) bool, True where attention is not allowed; or float, added to the scores.
    """
    scores = torch.matmul(query * query.shape[-1] ** -0.5, keys.transpose(-1, -2))
    if barred is not None:
        is_mask = barred.dtype == torch.bool
        scores = scores.masked_fill(barred, float("-inf")) if is_mask else scores + barred
    return torch.matmul(scores.softmax(-1), values)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each behind its own norm."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.self_norm = nn.LayerNorm(width)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_query = nn.Linear(width, width)
        self.cross_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, config.feedforward)
        self.feed_out = nn.Linear(config.feedforward, width)
        self.dropout = nn.Dropout(config.dropout)

    def _finish(self, x: Tensor, attended: Tensor, cross_keys: Tensor, cross_values: Tensor) -> Tensor:
        x = x + self.dropout(self.self_out(merge_heads(attended)))
        query = split_heads(self.cross_query(self.cross_norm(x)), self.heads)
        x = x + self.dropout(self.cross_out(merge_heads(attend(query, cross_keys, cross_values))))
        fed: Tensor = self.dropout(self.feed_out(F.gelu(self.feed_in(self.feed_norm(x)))))
        return x + fed

    def forward(self, x: Tensor, cross_keys: Tensor, cross_values: Tensor) -> Tensor:
        """Whole sequences under a causal mask: (b, t, w) -> (b, t, w)."""
        query, keys, values = self.self_qkv(self.self_norm(x)).chunk(3, -1)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        attended = attend(
            split_heads(query, self.heads),
            split_heads(keys, self.heads),
            split_heads(values, self.heads),
            future,
        )
        return self._finish(x, attended, cross_keys, cross_values)

    def step(
        self,
        x: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        cross_keys: Tensor,
        cross_values: Tensor,
        *,
        barred: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token (b, 1, w) after a past (b, h, p, d); also returns the grown keys and values.

        `barred` (1, p + 1) is as in `attend`, for a past of which a part is not to be seen.
        """
        query, keys, values = self.self_qkv(self.self_norm(x)).chunk(3, -1)
        keys = torch.cat([past_keys, split_heads(keys, self.heads)], 2)  # (b, h, p + 1, d)
        values = torch.cat([past_values, split_heads(values, self.heads)], 2)
        attended = attend(split_heads(query, self.heads), keys, values, barred)
        return self._finish(x, attended, cross_keys, cross_values), keys, values

    def step_into(
        self, x: Tensor, past: int, keys: Tensor, values: Tensor, cross_keys: Tensor, cross_values: Tensor
    ) -> Tensor:
        """As `step`, with keys and values written at position `past` of buffers (b, h, longest, d)."""
        query, new_keys, new_values = self.self_qkv(self.self_norm(x)).chunk(3, -1)
        keys[:, :, past] = split_heads(new_keys, self.heads)[:, :, 0]
        values[:, :, past] = split_heads(new_values, self.heads)[:, :, 0]
        seen = slice(0, past + 1)
        attended = attend(split_heads(query, self.heads), keys[:, :, seen], values[:, :, seen])
        return self._finish(x, attended, cross_keys, cross_values)


class CaptionDecoder(nn.Module):
    """Token ids and the image's keys and values -> next-token logits; embeddings are tied to the output."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.logit_bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        nn.init.normal_(self.positions.weight, std=0.02)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.final_norm(x), self.embedding.weight, self.logit_bias)

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        # Scaled up because tied rows must also be small enough to serve as the output layer.
        embedded: Tensor = self.dropout(self.embedding(ids) * self.config.width**0.5 + positions)
        return embedded

    def forward(self, ids: Tensor, cross_kv: Tensor) -> Tensor:
        """Teacher forcing.

        Args:
            ids: (b, t) int64, each row from the start piece on.
            cross_kv: (2l, b, h, n, d) float.

        Returns:
            (b, t, v) float logits; position i predicts token i + 1.
        """
        x = self._embed(ids, self.positions.weight[: ids.shape[1]])
        # Unbound once: the gradient of each indexing would be a zero tensor as large as all of cross_kv.
        rows = cross_kv.unbind(0)
        for index, layer in enumerate(self.layers):
            x = layer(x, rows[2 * index], rows[2 * index + 1])
        return self._logits(x)

    def step(
        self,
        ids: Tensor,
        past_kv: Tensor,
        cross_kv: Tensor,
        *,
        position: Tensor | None = None,
        barred: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One token with a cache.

        Args:
            ids: (b, 1) int64.
            past_kv: (2l, b, h, p, d) float, p >= 0; p is also the position of `ids` unless that is given.
            cross_kv: (2l, b, h, n, d) float.
            position: (1,) int64, of `ids`, where the past is a window that is not full.
            barred: (1, p + 1), as in `attend`, where a part of the past is not to be seen.

        Returns:
            logits (b, v) and the grown cache (2l, b, h, p + 1, d).
        """
        past, table = past_kv.shape[3], self.positions.weight
        # Not a slice, whose end an exporter takes for unknown: one token would not be known to be one.
        row = table.narrow(0, past, 1) if position is None else table[position]
        x = self._embed(ids, row)
        grown: list[Tensor] = []
        for index, layer in enumerate(cast("Iterable[DecoderLayer]", self.layers)):
            key, value = 2 * index, 2 * index + 1
            x, keys, values = layer.step(
                x, past_kv[key], past_kv[value], cross_kv[key], cross_kv[value], barred=barred
            )
            grown += [keys, values]
        return self._logits(x)[:, 0], torch.stack(grown)

    def step_into(self, ids: Tensor, past: int, cache: Tensor, cross_kv: Tensor) -> Tensor:
        """One token without copying the cache, which is where drawing captions spent most of its time.

        Args:
            ids: (b, 1) int64.
            past: tokens in the cache, which is also the position of `ids`.
            cache: (2l, b, h, longest, d) float, longest > past; written at position `past`.
            cross_kv: (2l, b, h, n, d) float.

        Returns:
            logits (b, v).
        """
        x = self._embed(ids, self.positions.weight[past : past + 1])
        for index, layer in enumerate(cast("Iterable[DecoderLayer]", self.layers)):
            key, value = 2 * index, 2 * index + 1
            x = layer.step_into(x, past, cache[key], cache[value], cross_kv[key], cross_kv[value])
        return self._logits(x)[:, 0]

    def empty_past(self, batch: int) -> Tensor:
        """A cache of length 0: (2l, b, h, 0, d)."""
        c = self.config
        return self.positions.weight.new_zeros(2 * c.layers, batch, c.heads, 0, c.head_width)


class CrossBridge(nn.Module):
    """Trunk features -> cross-attention keys and values of all decoder layers, computed once per image."""

    def __init__(self, config: CompactConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.reduce = nn.Linear(channels, config.width)
        self.positions = nn.Parameter(torch.zeros(config.image_tokens, config.width))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.keys_values = nn.Linear(config.width, 2 * config.layers * config.width)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(b, n, c) -> (2l, b, h, n, d)."""
        c = self.config
        b, n, _ = features.shape
        x = self.dropout(self.norm(self.reduce(features) + self.positions))
        packed: Tensor = self.keys_values(x).reshape(b, n, 2 * c.layers, c.heads, c.head_width)
        return packed.permute(2, 0, 3, 1, 4)
