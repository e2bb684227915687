"""BLIP for captioning: a ViT and a decoder in the manner of BERT with cross-attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tellapart_export.families.bert import finish, keys_values, query_of, refuse_relative_positions
from tellapart_export.graphs import (
    DecoderSizes,
    ScaledPixels,
    barred_past,
    decoder_graph,
    position_row,
    vision_graph,
)
from tellapart_export.hugging_face import identify, load_network, read_decoding, read_licence
from tellapart_export.pictures import check_preprocessing, read_preprocessing
from tellapart_export.subject import Subject
from tellapart_export.words import check_words, read_words
from tellapart_model.caption_model import attend, merge_heads

_SPARE = (r"\.position_ids$",)


class VisionGraph(nn.Module):
    """Pixels -> what the decoder attends to."""

    def __init__(self, model: Any, pixels: ScaledPixels) -> None:
        """Take the image tower and the cross-attentions of a `BlipForConditionalGeneration`."""
        super().__init__()
        self.pixels, self.tower = pixels, model.vision_model
        layers = model.text_decoder.bert.encoder.layer
        self.attentions = nn.ModuleList(layer.crossattention for layer in layers)
        self.heads = int(model.config.text_config.num_attention_heads)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> cross_kv (2L, b, H, N, D)."""
        states = self.tower(pixel_values=self.pixels(pixels)).last_hidden_state
        rows = [part for layer in self.attentions for part in keys_values(layer, states, self.heads)]
        return torch.stack(rows)


class DecoderGraph(nn.Module):
    """One token with a cache."""

    def __init__(self, decoder: Any) -> None:
        """Take a `BlipTextLMHeadModel`."""
        super().__init__()
        self.decoder = decoder
        self.heads = int(decoder.config.num_attention_heads)

    def forward(
        self, ids: Tensor, past_kv: Tensor, cross_kv: Tensor, position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids (b, 1), past_kv (2L, b, H, P, D), cross_kv (2L, b, H, N, D) -> logits (b, V), present_kv."""
        body, heads = self.decoder.bert, self.heads
        table, barred = body.embeddings, barred_past(past_kv, position)
        x = table.word_embeddings(ids) + position_row(table.position_embeddings.weight, past_kv, position)
        x = table.LayerNorm(x)
        grown: list[Tensor] = []
        for index, layer in enumerate(body.encoder.layer):
            keys, values = keys_values(layer.attention, x, heads)
            keys = torch.cat([past_kv[2 * index], keys], 2)
            values = torch.cat([past_kv[2 * index + 1], values], 2)
            seen = attend(query_of(layer.attention, x, heads), keys, values, barred)
            x = layer.attention.output(merge_heads(seen), x)
            query = query_of(layer.crossattention, x, heads)
            seen = attend(query, cross_kv[2 * index], cross_kv[2 * index + 1])
            x = finish(layer, layer.crossattention.output(merge_heads(seen), x))
            grown += [keys, values]
        return self.decoder.cls(x)[:, 0], torch.stack(grown)


def open_checkpoint(folder: Path) -> Subject:
    """The captioner in a folder.

    Raises:
        CheckpointError: not whole, damaged, or another BLIP (question answering, matching).
        ParityError: words or pixels that a bundle cannot describe.
    """
    from transformers import BlipForConditionalGeneration

    model = load_network(BlipForConditionalGeneration, folder, spare=_SPARE)
    config = model.config.text_config
    refuse_relative_positions(config, folder)
    page = read_preprocessing(folder, image_px=model.config.vision_config.image_size)
    scale = ScaledPixels(page)
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    sizes = DecoderSizes(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        image_tokens=side * side + 1,
        head_width=config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
    )
    positions = config.max_position_embeddings - 1
    decoding, ignored = read_decoding(model.text_decoder.generation_config, longest=positions)
    # The start mark was added behind BERT's words and is in no tokenizer file.
    words = read_words(folder)
    unknown = words.place("[UNK]")
    words = words.grown(config.vocab_size, {config.bos_token_id: "[DEC]"})
    vocabulary, files = words.page(
        pad=config.pad_token_id, unknown=unknown, start=config.bos_token_id, end=config.sep_token_id,
        max_text_tokens=positions,
    )  # fmt: skip
    sha256, source = identify(folder)

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        found: Tensor = model(pixel_values=scale(pixels), input_ids=ids).logits
        return found

    return Subject(
        family="blip",
        kind=("captioner",),
        graphs=(
            vision_graph(VisionGraph(model, scale), page.image_px, sizes=sizes),
            decoder_graph(DecoderGraph(model.text_decoder), sizes, token=config.bos_token_id),
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
