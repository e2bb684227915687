"""Captions of a ClipCap under way: GPT-2 over one buffer of keys and values, which is never copied to grow.

Axis letters: r rows, P prefix vectors, h heads, d head width, l layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tellapart_model.caption_model import attend, merge_heads, split_heads


class ClipCapWalk:
    """See `captioner.Walk`; the first step reads the prefix in the place of a start mark."""

    def __init__(self, language: Any, prefix: Tensor, longest: int) -> None:
        """Begin.

        Args:
            language: `GPT2LMHeadModel`, its attention adapted by LoRA or not.
            prefix: (r, P, width).
            longest: tokens at most.
        """
        self._language, self._prefix, self._past = language, prefix, 0
        config = language.config
        self._heads, self._words = config.n_head, config.vocab_size
        width = config.n_embd // config.n_head
        places = prefix.shape[1] + longest - 1
        self._cache = prefix.new_zeros(2 * config.n_layer, len(prefix), config.n_head, places, width)

    def step(self, ids: Tensor) -> Tensor:
        """See `Walk`; ids past the vocabulary belong to rows that are over."""
        body, past = self._language.transformer, self._past
        x = body.wte(ids.clamp(max=self._words - 1)) if past else self._prefix
        tokens = x.shape[1]
        places, seen = slice(past, past + tokens), slice(0, past + tokens)
        x = x + body.wpe.weight[places]
        future = None
        if tokens > 1:
            future = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
        for index, block in enumerate(body.h):
            query, keys, values = (
                split_heads(part, self._heads) for part in block.attn.c_attn(block.ln_1(x)).chunk(3, -1)
            )
            all_keys, all_values = self._cache[2 * index], self._cache[2 * index + 1]
            all_keys[:, :, places], all_values[:, :, places] = keys, values
            mixed = attend(query, all_keys[:, :, seen], all_values[:, :, seen], future)
            x = x + block.attn.c_proj(merge_heads(mixed))
            x = x + block.mlp(block.ln_2(x))
        self._past += tokens
        logits: Tensor = self._language.lm_head(body.ln_f(x[:, -1]))
        return logits

    def keep(self, rows: Tensor) -> None:
        """See `Walk`."""
        self._cache, self._prefix = self._cache[:, rows], self._prefix[rows]
