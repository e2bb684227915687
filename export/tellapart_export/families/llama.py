"""Llama as the language of a captioner: a prefix once, then one token with a cache.

Rotary positions are tables, made by the network's own module; a key is turned before it goes into a cache, so
nobody turns it again. Several query heads share a head of keys and values: they are laid side by side, as if
they were tokens, and nothing is copied.

Letters: b batch, T tokens, P past, N prefix, H heads of keys and values, G query heads to each of them, D
width of a head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tellapart.errors import CheckpointError
from tellapart_export.families.bert import share_attention
from tellapart_export.graphs import DecoderSizes, barred_past, position_row
from tellapart_model.caption_model import attend, split_heads

_TABLES = ("default", "linear", "llama3")  # rotary positions that depend on nothing but the position


class Rotary(nn.Module):
    """Turns queries and keys by their position."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, language: Any, positions: int) -> None:
        """Make tables of (positions, D) of a `LlamaModel`'s own rule."""
        super().__init__()
        cosine, sine = language.rotary_emb(torch.zeros(1), torch.arange(positions)[None])
        self.register_buffer("cosine", cosine[0].contiguous())
        self.register_buffer("sine", sine[0].contiguous())

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """X (b, heads, T, D), rows of the tables (T, D) -> (b, heads, T, D)."""
        half = x.shape[-1] // 2
        return x * cosine + torch.cat([-x[..., half:], x[..., :half]], -1) * sine


class Prefix(nn.Module):
    """What each layer makes of vectors before the words, which look only at those before them."""

    def __init__(self, language: Any, rotary: Rotary) -> None:
        """Take a `LlamaModel`."""
        super().__init__()
        self.layers, self.rotary = language.layers, rotary
        self.heads, self.groups, _ = heads_of(language.config)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors (b, N, width) -> keys and values (2L, b, H, N, D), keys turned."""
        count = x.shape[1]
        turns = self.rotary.cosine[:count], self.rotary.sine[:count]
        future = torch.ones(count, count, dtype=torch.bool).triu(1).repeat(self.groups, 1)
        rows: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            inside, seen = layer.input_layernorm(x), layer.self_attn
            keys = self.rotary(split_heads(seen.k_proj(inside), self.heads), *turns)
            values = split_heads(seen.v_proj(inside), self.heads)
            rows += [keys, values]
            if index + 1 < len(self.layers):  # nothing looks at what the last layer makes of the prefix
                query = self.rotary(split_heads(seen.q_proj(inside), self.heads * self.groups), *turns)
                shared = query.reshape(query.shape[0], self.heads, self.groups * count, query.shape[-1])
                found = attend(shared, keys, values, future).reshape(query.shape)
                x = finish(layer, x, found.transpose(1, 2).flatten(2))
        return torch.stack(rows)


class Step(nn.Module):
    """One token behind a prefix.

    The caption's start mark stands for the prompt's last token: the mark itself is never said, and that token
    may be.
    """

    def __init__(self, model: Any, rotary: Rotary, *, prefix: int, start_id: int, last_id: int) -> None:
        """Take a network whose `lm_head` reads what its `model.text_model`, a `LlamaModel`, gives.

        Args:
            model: see above.
            rotary: for prefix and words.
            prefix: N.
            start_id: the start mark.
            last_id: token that it stands for.
        """
        super().__init__()
        language = model.model.text_model
        self.table, self.layers, self.norm = language.embed_tokens, language.layers, language.norm
        self.output, self.rotary = model.lm_head, rotary
        self.heads, self.groups, _ = heads_of(language.config)
        self.prefix, self.start_id, self.last_id = prefix, start_id, last_id

    def forward(
        self, ids: Tensor, past_kv: Tensor, cross_kv: Tensor, position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids (b, 1), past_kv (2L, b, H, P, D), cross_kv (2L, b, H, N, D) -> logits (b, V), present_kv."""
        barred = barred_past(past_kv, position)
        cosine, sine = (
            position_row(table, past_kv, position, first=self.prefix)
            for table in (self.rotary.cosine, self.rotary.sine)
        )
        x = self.table(torch.where(ids == self.start_id, self.last_id, ids))
        grown: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            inside, seen = layer.input_layernorm(x), layer.self_attn
            query = self.rotary(split_heads(seen.q_proj(inside), self.heads * self.groups), cosine, sine)
            keys = self.rotary(split_heads(seen.k_proj(inside), self.heads), cosine, sine)
            keys = torch.cat([past_kv[2 * index], keys], 2)
            values = torch.cat([past_kv[2 * index + 1], split_heads(seen.v_proj(inside), self.heads)], 2)
            shared = query.reshape(query.shape[0], self.heads, self.groups, query.shape[-1])
            image = cross_kv[2 * index], cross_kv[2 * index + 1]
            found = share_attention(shared, image, (keys, values), barred)
            x = finish(layer, x, found.flatten(1)[:, None])
            grown += [keys, values]
        return self.output(self.norm(x))[:, 0], torch.stack(grown)


def finish(layer: Any, x: Tensor, seen: Tensor) -> Tensor:
    """The rest of a layer: x and what its attention saw, heads merged, both (b, T, width)."""
    x = x + layer.self_attn.o_proj(seen)
    found: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
    return found


def heads_of(config: Any) -> tuple[int, int, int]:
    """H, G and D of a `LlamaConfig`."""
    heads = int(config.num_key_value_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return heads, config.num_attention_heads // heads, int(width)


def llama_sizes(config: Any, prefix: int) -> DecoderSizes:
    """Sizes of a Llama's caches behind a prefix of N vectors."""
    heads, _, width = heads_of(config)
    return DecoderSizes(
        layers=config.num_hidden_layers,
        heads=heads,
        image_tokens=prefix,
        head_width=width,
        vocabulary=config.vocab_size,
    )


def refuse_other_languages(config: Any, folder: Path) -> None:
    """Only Llama, with rotary positions that a table can hold.

    Raises:
        CheckpointError: the configuration asks for another.
    """
    if config.model_type != "llama":
        raise CheckpointError(
            f"{folder}: its language model is {config.model_type!r}, and of this family only those with "
            "'llama' are exported; docs/add_a_family.md tells how to add another"
        )
    scaling = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _TABLES:
        raise CheckpointError(
            f"{folder}: rotary positions of the kind {kind!r} change with the length of the text, which is "
            f"not supported; only {', '.join(_TABLES)}"
        )
