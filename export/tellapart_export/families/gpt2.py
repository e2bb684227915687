"""GPT-2 as the decoder of a captioner: one token with a cache, and the keys and values of its image.

The blocks of transformers are walked here by hand: theirs compute the image's keys and values anew for
every token where they are exported as they are, and trace with masks that a single token does not need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tellapart.errors import CheckpointError
from tellapart_export.graphs import DecoderSizes, barred_past, position_row
from tellapart_model.caption_model import attend, merge_heads, split_heads


class CrossStep(nn.Module):
    """One token of a GPT-2 with cross-attention."""

    def __init__(self, language: Any) -> None:
        """Take the blocks of a `GPT2LMHeadModel`."""
        super().__init__()
        self.language = language
        self.heads = int(language.config.n_head)

    def forward(
        self, ids: Tensor, past_kv: Tensor, cross_kv: Tensor, position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids (b, 1), past_kv (2L, b, H, P, D), cross_kv (2L, b, H, N, D) -> logits (b, V), present_kv."""
        body, barred = self.language.transformer, barred_past(past_kv, position)
        x = body.wte(ids) + position_row(body.wpe.weight, past_kv, position)
        grown: list[Tensor] = []
        for index, block in enumerate(body.h):
            x, keys, values = self_attend(
                block, x, past_kv[2 * index], past_kv[2 * index + 1], self.heads, barred=barred
            )
            attention = block.crossattention
            query = scaled(attention, split_heads(attention.q_attn(block.ln_cross_attn(x)), self.heads))
            seen = attend(query, cross_kv[2 * index], cross_kv[2 * index + 1])
            x = x + attention.c_proj(merge_heads(seen))
            x = x + block.mlp(block.ln_2(x))
            grown += [keys, values]
        return self.language.lm_head(body.ln_f(x))[:, 0], torch.stack(grown)


class CrossKeysValues(nn.Module):
    """What each layer of a GPT-2 makes of the image, once."""

    def __init__(self, language: Any) -> None:
        """Take the cross-attentions of a `GPT2LMHeadModel`."""
        super().__init__()
        self.layers = nn.ModuleList(block.crossattention.c_attn for block in language.transformer.h)
        self.heads = int(language.config.n_head)

    def forward(self, states: Tensor) -> Tensor:
        """States (b, N, width) of the encoder -> cross_kv (2L, b, H, N, D)."""
        rows = [split_heads(part, self.heads) for layer in self.layers for part in layer(states).chunk(2, -1)]
        return torch.stack(rows)


def self_attend(
    block: Any,
    x: Tensor,
    past_keys: Tensor,
    past_values: Tensor,
    heads: int,
    *,
    barred: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The self-attention of one block: x (b, 1, width) after a past (b, H, P, D) -> x, keys, values."""
    query, keys, values = (split_heads(part, heads) for part in block.attn.c_attn(block.ln_1(x)).chunk(3, -1))
    keys, values = torch.cat([past_keys, keys], 2), torch.cat([past_values, values], 2)
    attended = attend(scaled(block.attn, query), keys, values, barred)
    return x + block.attn.c_proj(merge_heads(attended)), keys, values


def scaled(attention: Any, query: Tensor) -> Tensor:
    """The query, such that `attend`, which divides by the root of D, does what the configuration says."""
    factor = 1.0 if attention.scale_attn_weights else float(attention.head_dim) ** 0.5
    if attention.scale_attn_by_inverse_layer_idx:
        factor /= attention.layer_idx + 1
    return query if factor == 1.0 else query * factor


def gpt2_sizes(language: Any, image_tokens: int) -> DecoderSizes:
    """Sizes of a GPT-2's caches.

    Raises:
        CheckpointError: heads were pruned away, so that layers differ.
    """
    config = language.config
    if getattr(config, "pruned_heads", None):
        raise CheckpointError("GPT-2 with pruned heads has layers of different sizes, which is not supported")
    return DecoderSizes(
        layers=config.n_layer,
        heads=config.n_head,
        image_tokens=image_tokens,
        head_width=config.n_embd // config.n_head,
        vocabulary=config.vocab_size,
    )
