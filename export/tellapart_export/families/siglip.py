"""SigLIP as a retriever: two towers and a tokenizer of unigrams."""

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
_END = "</s>"


class VisionGraph(nn.Module):
    """Pixels -> the image's unit row."""

    def __init__(self, model: Any, pixels: ScaledPixels) -> None:
        """Take the image tower of a `SiglipModel`."""
        super().__init__()
        self.pixels, self.tower = pixels, model.vision_model

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> embedding (b, E)."""
        return F.normalize(self.tower(pixel_values=self.pixels(pixels)).pooler_output, dim=-1)


class TextGraph(nn.Module):
    """Token ids -> the text's unit row.

    SigLIP was trained on texts filled up to a fixed length, speaks at the last place, and masks nothing, so
    the filling is part of the text and happens here. It has no start mark, so the device's is taken off.
    """

    def __init__(self, model: Any, *, length: int, pad_id: int) -> None:
        """Take the text tower of a `SiglipModel`."""
        super().__init__()
        self.tower, self.length, self.pad_id = model.text_model, length, pad_id

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (b, T), start mark included, at most one more than the tower reads -> embedding (b, E)."""
        return F.normalize(self.tower(input_ids=_filled(ids, self.length, self.pad_id)).pooler_output, dim=-1)


def _filled(ids: Tensor, length: int, pad_id: int) -> Tensor:
    """(b, T) with a start mark -> (b, length) without."""
    filling = torch.full((ids.shape[0], length), pad_id, dtype=torch.int64)
    return torch.cat([ids[:, 1:], filling], 1)[:, :length]


def open_checkpoint(folder: Path) -> Subject:
    """The retriever in a folder.

    Raises:
        CheckpointError: not whole or damaged, or words of another kind (SigLIP 2 has Gemma's).
        ParityError: words or pixels that a bundle cannot describe.
    """
    from transformers import SiglipModel

    model = load_network(SiglipModel, folder, spare=_SPARE)
    config = model.config
    page = read_preprocessing(folder, image_px=config.vision_config.image_size)
    scale = ScaledPixels(page)
    words = read_words(folder)
    end, unknown = words.place(_END), words.place("<unk>")
    words = words.grown(config.text_config.vocab_size)
    length = config.text_config.max_position_embeddings
    # The start mark comes from the device and goes again inside the graph; the end mark also fills.
    vocabulary, files = words.page(pad=end, unknown=unknown, start=end, end=end, max_text_tokens=length + 1)
    alike = check_words(words, vocabulary, files)
    tokenizer = device_tokenizer(vocabulary, files)
    texts = [tokenizer.encode(text, max_tokens=length + 1) for text in (*TEXTS, "dog " * 99)]
    embedding = config.text_config.projection_size
    sha256, source = identify(folder)

    def embed_texts(ids: Tensor) -> Tensor:
        return unit_rows(model.get_text_features(_filled(ids, length, end)))

    return Subject(
        family="siglip",
        kind=("retriever",),
        graphs=(
            vision_graph(VisionGraph(model, scale), page.image_px, embedding=embedding),
            text_graph(
                TextGraph(model, length=length, pad_id=end),
                embedding,
                example=torch.tensor([[end, 5, 6, 7, end, end], [end, 8, 9, 10, 11, end]]),
            ),
        ),
        preprocessing=page,
        vocabulary=vocabulary,
        files=files,
        embed_images=lambda pixels: unit_rows(model.get_image_features(scale(pixels))),
        embed_texts=embed_texts,
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
