"""ClipCap, as `tellapart_model.clipcap` saves it: a prefix of vectors from CLIP before the words of GPT-2.

Three things fit the bundle's page in a way of their own:

- The prefix is not looked back at, so the keys and values of all but its last vector are `cross_kv`. The last
  one has to pass through the layers to give the first token, as the start mark does in other decoders: it
  travels in a further place of `cross_kv` (row 0 of axis 0, the last image token), and the decoder takes
  it in the place of the start mark's embedding.
- A caption ends after any of the tokens whose text holds a full stop. The decoder has one more token than
  GPT-2, the end mark: it comes, and nothing else, where the token before was a stop.
- That mark is the start mark too.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tellapart.manifest import Decoding
from tellapart_export.families.bert import attend_with_prefix
from tellapart_export.families.gpt2 import gpt2_sizes
from tellapart_export.graphs import (
    BARRED,
    ScaledPixels,
    barred_past,
    decoder_graph,
    position_row,
    vision_graph,
)
from tellapart_export.hugging_face import check_finite, identify
from tellapart_export.subject import Subject
from tellapart_export.words import check_words, read_words
from tellapart_model.caption_model import attend, merge_heads, split_heads
from tellapart_model.clipcap import ClipCap, load_clipcap, stop_token_ids

_END = "<|end of caption|>"


class VisionGraph(nn.Module):
    """Pixels -> keys and values of the prefix, and its last vector."""

    def __init__(self, model: ClipCap, pixels: ScaledPixels) -> None:
        """Take CLIP's tower, the mapper and the layers that the prefix runs through."""
        super().__init__()
        self.pixels, self.model = pixels, model
        self.heads = model.config.language_heads

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> cross_kv (2L, b, H, N, D), N the vectors of the prefix."""
        body: Any = self.model.language.transformer
        prefix = self.model.prefix(self.pixels(pixels))
        x = prefix + body.wpe.weight[: prefix.shape[1]]
        last, x = x[:, -1:], x[:, :-1]
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        rows: list[Tensor] = []
        for index, block in enumerate(body.h):
            query, keys, values = block.attn.c_attn(block.ln_1(x)).chunk(3, -1)
            keys, values = split_heads(keys, self.heads), split_heads(values, self.heads)
            # Only row 0 has something to carry; the others are as long so that all fit one tensor.
            carried = split_heads(last, self.heads)
            rows += [
                torch.cat([keys, carried if index == 0 else torch.zeros_like(carried)], 2),
                torch.cat([values, torch.zeros_like(carried)], 2),
            ]
            if index + 1 < len(body.h):
                seen = attend(split_heads(query, self.heads), keys, values, future)
                x = x + block.attn.c_proj(merge_heads(seen))
                x = x + block.mlp(block.ln_2(x))
        return torch.stack(rows)


class DecoderGraph(nn.Module):
    """One token with a cache."""

    is_stop: Tensor

    def __init__(self, model: ClipCap, stops: frozenset[int]) -> None:
        """Take GPT-2; `stops` are the ids after which a caption is over."""
        super().__init__()
        self.language: Any = model.language
        self.heads = model.config.language_heads
        self.first = model.config.prefix_length - 1  # position of the start
        self.end_id = model.config.vocabulary_size
        self.register_buffer("is_stop", _stop_table(stops, self.end_id))

    def forward(
        self, ids: Tensor, past_kv: Tensor, cross_kv: Tensor, position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids (b, 1), past_kv (2L, b, H, P, D), cross_kv (2L, b, H, N, D) -> logits (b, V), present_kv."""
        body, barred = self.language.transformer, barred_past(past_kv, position)
        place = position_row(body.wpe.weight, past_kv, position, first=self.first)
        # Not clamp, which Core ML does in float16: that has gaps above 2048.
        words = body.wte(torch.where(ids == self.end_id, 0, ids)) + place
        x = torch.where((ids == self.end_id)[..., None], merge_heads(cross_kv[0][:, :, -1:]), words)
        grown: list[Tensor] = []
        for index, block in enumerate(body.h):
            query, keys, values = (
                split_heads(part, self.heads) for part in block.attn.c_attn(block.ln_1(x)).chunk(3, -1)
            )
            keys = torch.cat([past_kv[2 * index], keys], 2)
            values = torch.cat([past_kv[2 * index + 1], values], 2)
            image = cross_kv[2 * index][:, :, :-1], cross_kv[2 * index + 1][:, :, :-1]
            x = x + block.attn.c_proj(attend_with_prefix(query, image, (keys, values), barred))
            x = x + block.mlp(block.ln_2(x))
            grown += [keys, values]
        logits = self.language.lm_head(body.ln_f(x))[:, 0]
        return with_end(logits, self.is_stop[ids[:, 0]]), torch.stack(grown)


def with_end(logits: Tensor, stopped: Tensor) -> Tensor:
    """The logits with one more column for the end mark, which comes after a stop and never else.

    Args:
        logits: (..., V).
        stopped: (...) bool, whether the token before was a stop.

    Returns:
        (..., V + 1).
    """
    barred = torch.full_like(logits[..., :1], BARRED)
    over = torch.cat([torch.full_like(logits, BARRED), torch.zeros_like(barred)], -1)
    return torch.where(stopped[..., None], over, torch.cat([logits, barred], -1))


def open_checkpoint(folder: Path) -> Subject:
    """The captioner in a folder, GPT-2's `vocab.json` and `merges.txt` beside the weights.

    Raises:
        CheckpointError: not whole or damaged, or GPT-2's words are missing.
        ConfigError: a wrong configuration.
        ParityError: words that a bundle cannot describe.
    """
    model = load_clipcap(folder)
    model.requires_grad_(False)
    check_finite(model, folder)
    config = model.config
    words = read_words(folder)
    stops = stop_token_ids({piece: index for index, piece in enumerate(words.pieces)})
    end = config.vocabulary_size
    words = words.grown(end).grown(end + 1, {end: _END})
    limit = config.max_length - config.prefix_length
    vocabulary, files = words.page(pad=end, unknown=end, start=end, end=end, max_text_tokens=limit)
    page = config.preprocessing()
    scale = ScaledPixels(page)
    sizes = dataclasses.replace(gpt2_sizes(model.language, config.prefix_length), vocabulary=end + 1)
    is_stop = _stop_table(stops, end)
    sha256, source = identify(folder)

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        # ClipCap has no start mark: the first row comes of the prefix alone, and the last id is not asked
        # for.
        given = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], 1).clamp(max=end - 1)
        return with_end(model(scale(pixels), given), is_stop[ids])

    return Subject(
        family="clipcap",
        kind=("captioner",),
        graphs=(
            vision_graph(VisionGraph(model, scale), page.image_px, sizes=sizes),
            decoder_graph(DecoderGraph(model, stops), sizes, token=end),
        ),
        preprocessing=page,
        vocabulary=vocabulary,
        files=files,
        decoding=Decoding(max_new_tokens=limit, beams=5),
        positions=limit,
        logits=logits,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        checkpoint_sha256=sha256,
        source={**source, "architecture": dataclasses.asdict(config)},
        remarks={"texts_cut_alike": check_words(words, vocabulary, files)},
    )


def _stop_table(stops: frozenset[int], end_id: int) -> Tensor:
    """(V + 1,) bool, True where a caption is over after the token."""
    table = torch.zeros(end_id + 1, dtype=torch.bool)
    table[sorted(stops)] = True
    return table
