"""CLIP as a retriever, and what is saved in CLIP's format (TinyCLIP): two towers, no captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tellapart_export.graphs import ScaledPixels, text_graph, vision_graph
from tellapart_export.hugging_face import identify, load_network, read_licence, unit_rows
from tellapart_export.pictures import check_preprocessing, read_preprocessing
from tellapart_export.subject import Subject
from tellapart_export.words import TEXTS, check_words, device_tokenizer, read_words

_SPARE = (r"\.position_ids$",)


class VisionGraph(nn.Module):
    """Pixels -> the image's unit row."""

    def __init__(self, model: Any, pixels: ScaledPixels) -> None:
        """Take the image tower of a `CLIPModel`."""
        super().__init__()
        self.pixels, self.tower, self.project = pixels, model.vision_model, model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> embedding (b, E)."""
        return F.normalize(self.project(self.tower(pixel_values=self.pixels(pixels)).pooler_output), dim=-1)


class TextGraph(nn.Module):
    """Token ids -> the text's unit row."""

    def __init__(self, model: Any, *, end_id: int) -> None:
        """Take the text tower of a `CLIPModel`; `end_id` marks the token that speaks for a text."""
        super().__init__()
        self.tower, self.project, self.end_id = model.text_model, model.text_projection, end_id

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (b, T), marks included, filled up behind the end mark with anything -> embedding (b, E)."""
        count = ids.shape[1]
        table = self.tower.embeddings
        x = table.token_embedding(ids) + table.position_embedding.weight[:count]
        future = torch.full((count, count), torch.finfo(torch.float32).min).triu(1)[None, None]
        # By their parts: what a whole layer takes and gives changed with transformers 5.
        for layer in self.tower.encoder.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), attention_mask=future)[0]
            x = x + layer.mlp(layer.layer_norm2(x))
        x = self.tower.final_layer_norm(x)
        first = (ids == self.end_id).int().argmax(-1)  # (b,)
        pooled = x.gather(1, first[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]
        return F.normalize(self.project(pooled), dim=-1)


def open_checkpoint(folder: Path) -> Subject:
    """The retriever in a folder.

    Raises:
        CheckpointError: not whole or damaged.
        ParityError: words or pixels that a bundle cannot describe.
    """
    from transformers import CLIPModel

    model = load_network(CLIPModel, folder, spare=_SPARE)
    config = model.config
    page = read_preprocessing(folder, image_px=config.vision_config.image_size)
    scale = ScaledPixels(page)
    words = read_words(folder)
    # By name: the configuration of the first checkpoints names other ids, which transformers works around.
    start, end = words.place("<|startoftext|>"), words.place("<|endoftext|>")
    words = words.grown(config.text_config.vocab_size)
    vocabulary, files = words.page(
        pad=end, unknown=end, start=start, end=end,
        max_text_tokens=config.text_config.max_position_embeddings,
    )  # fmt: skip
    alike = check_words(words, vocabulary, files)
    tokenizer = device_tokenizer(vocabulary, files)
    texts = [tokenizer.encode(text, max_tokens=vocabulary.max_text_tokens) for text in TEXTS]
    texts.append(tokenizer.encode(" ".join(["dogs"] * 99), max_tokens=vocabulary.max_text_tokens))
    sha256, source = identify(folder)
    return Subject(
        family="clip",
        kind=("retriever",),
        graphs=(
            vision_graph(VisionGraph(model, scale), page.image_px, embedding=config.projection_dim),
            text_graph(
                TextGraph(model, end_id=end),
                config.projection_dim,
                example=torch.tensor([[start, 5, 6, 7, end, end], [start, 8, 9, 10, 11, end]]),
            ),
        ),
        preprocessing=page,
        vocabulary=vocabulary,
        files=files,
        embed_images=lambda pixels: unit_rows(model.get_image_features(scale(pixels))),
        embed_texts=lambda ids: unit_rows(model.get_text_features(ids)),
        texts=texts,
        pad_id=end,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        checkpoint_sha256=sha256,
        source=source,
        licence=read_licence(folder),
        remarks={
            "preprocessing_max_abs": check_preprocessing(folder, page),
            "texts_cut_alike": alike,
        },
    )
