"""GIT: the image as a prefix before the words, in one stack of layers.

The image's part of the stack does not look at the words, so its keys and values are computed once; the
decoder's attention then takes one softmax over image and words. Transformers computes the image anew for
every token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tellapart.errors import CheckpointError
from tellapart_export.families.bert import (
    attend_with_prefix,
    finish,
    keys_values,
    query_of,
    refuse_relative_positions,
)
from tellapart_export.graphs import (
    DecoderSizes,
    ScaledPixels,
    barred_past,
    decoder_graph,
    position_row,
    vision_graph,
)
from tellapart_export.hugging_face import first_id, identify, load_network, read_decoding, read_licence
from tellapart_export.pictures import check_preprocessing, read_preprocessing
from tellapart_export.subject import Subject
from tellapart_export.words import check_words, read_words
from tellapart_model.caption_model import attend, merge_heads

_SPARE = (r"\.position_ids$",)


class VisionGraph(nn.Module):
    """Pixels -> keys and values of the image in every layer."""

    def __init__(self, body: Any, pixels: ScaledPixels) -> None:
        """Take a `GitModel`."""
        super().__init__()
        self.pixels, self.tower, self.project = pixels, body.image_encoder, body.visual_projection
        self.layers = body.encoder.layer
        self.heads = int(body.config.num_attention_heads)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> cross_kv (2L, b, H, N, D)."""
        x = self.project(self.tower(pixel_values=self.pixels(pixels)).last_hidden_state)
        rows: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            keys, values = keys_values(layer.attention, x, self.heads)
            rows += [keys, values]
            if index + 1 < len(self.layers):  # nothing looks at what the last layer makes of the image
                seen = merge_heads(attend(query_of(layer.attention, x, self.heads), keys, values))
                x = finish(layer, layer.attention.output(seen, x))
        return torch.stack(rows)


class DecoderGraph(nn.Module):
    """One token with a cache."""

    def __init__(self, model: Any) -> None:
        """Take a `GitForCausalLM`."""
        super().__init__()
        self.table, self.layers, self.output = model.git.embeddings, model.git.encoder.layer, model.output
        self.heads = int(model.config.num_attention_heads)

    def forward(
        self, ids: Tensor, past_kv: Tensor, cross_kv: Tensor, position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids (b, 1), past_kv (2L, b, H, P, D), cross_kv (2L, b, H, N, D) -> logits (b, V), present_kv."""
        heads, barred = self.heads, barred_past(past_kv, position)
        places = self.table.position_embeddings.weight
        x = self.table.word_embeddings(ids) + position_row(places, past_kv, position)
        x = self.table.LayerNorm(x)
        grown: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            keys, values = keys_values(layer.attention, x, heads)
            keys = torch.cat([past_kv[2 * index], keys], 2)
            values = torch.cat([past_kv[2 * index + 1], values], 2)
            image = cross_kv[2 * index], cross_kv[2 * index + 1]
            seen = attend_with_prefix(query_of(layer.attention, x, heads), image, (keys, values), barred)
            x = finish(layer, layer.attention.output(seen, x))
            grown += [keys, values]
        return self.output(x)[:, 0], torch.stack(grown)


def open_checkpoint(folder: Path) -> Subject:
    """The captioner in a folder.

    Raises:
        CheckpointError: not whole, damaged, or made for video.
        ParityError: words or pixels that a bundle cannot describe.
    """
    from transformers import GitForCausalLM

    model = load_network(GitForCausalLM, folder, spare=_SPARE)
    config = model.config
    refuse_relative_positions(config, folder)
    if config.num_image_with_embedding is not None:
        raise CheckpointError(
            f"{folder} describes videos of {config.num_image_with_embedding} frames, not pictures"
        )
    page = read_preprocessing(folder, image_px=config.vision_config.image_size)
    scale = ScaledPixels(page)
    side = config.vision_config.image_size // config.vision_config.patch_size
    sizes = DecoderSizes(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        image_tokens=side * side + 1,
        head_width=config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
    )
    settings = model.generation_config
    start = first_id(settings.bos_token_id, config.bos_token_id, what="start", folder=folder)
    end = first_id(settings.eos_token_id, config.eos_token_id, what="end", folder=folder)
    positions = config.max_position_embeddings - 1
    decoding, ignored = read_decoding(settings, longest=positions)
    words = read_words(folder)
    unknown = words.place("[UNK]")
    words = words.grown(config.vocab_size)
    vocabulary, files = words.page(
        pad=config.pad_token_id, unknown=unknown, start=start, end=end, max_text_tokens=positions
    )
    sha256, source = identify(folder)

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        found: Tensor = model(input_ids=ids, pixel_values=scale(pixels), use_cache=False).logits
        return found[:, -ids.shape[1] :]  # the rows before are the image's

    return Subject(
        family="git",
        kind=("captioner",),
        graphs=(
            vision_graph(VisionGraph(model.git, scale), page.image_px, sizes=sizes),
            decoder_graph(DecoderGraph(model), sizes, token=start),
        ),
        preprocessing=page,
        vocabulary=vocabulary,
        files=files,
        decoding=decoding,
        positions=positions,
        logits=logits,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        checkpoint_sha256=sha256,
        source={**source, **({"generation_settings_ignored": ignored} if ignored else {})},
        licence=read_licence(folder),
        remarks={
            "preprocessing_max_abs": check_preprocessing(folder, page),
            "texts_cut_alike": check_words(words, vocabulary, files),
        },
    )
