"""VisionEncoderDecoder of transformers with a GPT-2 as its decoder: ViT-GPT2 and kin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tellapart.errors import CheckpointError
from tellapart_export.families.gpt2 import CrossKeysValues, CrossStep, gpt2_sizes
from tellapart_export.graphs import ScaledPixels, decoder_graph, vision_graph
from tellapart_export.hugging_face import first_id, identify, load_network, read_decoding, read_licence
from tellapart_export.pictures import check_preprocessing, read_preprocessing
from tellapart_export.subject import Subject
from tellapart_export.words import check_words, read_words

_SPARE = (r"\.attn\.(masked_)?bias$", r"\.crossattention\.(masked_)?bias$", r"^encoder\.pooler\.")
"""Mask buffers that older GPT-2 code stored, and a pooler that no caption uses."""


class VisionGraph(nn.Module):
    """Pixels -> what the decoder attends to."""

    def __init__(self, model: Any, pixels: ScaledPixels) -> None:
        """Take the encoder and the cross-attentions of a `VisionEncoderDecoderModel`."""
        super().__init__()
        self.pixels, self.encoder = pixels, model.encoder
        # Only there where encoder and decoder have other widths.
        self.project = getattr(model, "enc_to_dec_proj", None) or nn.Identity()
        self.keys_values = CrossKeysValues(model.decoder)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> cross_kv (2L, b, H, N, D)."""
        states = self.encoder(pixel_values=self.pixels(pixels)).last_hidden_state
        found: Tensor = self.keys_values(self.project(states))
        return found


def open_checkpoint(folder: Path) -> Subject:
    """The captioner in a folder.

    Raises:
        CheckpointError: not whole, damaged, or with another decoder than GPT-2.
        ParityError: words or pixels that a bundle cannot describe.
    """
    from transformers import AutoConfig, VisionEncoderDecoderModel

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    decoder = config.decoder.model_type
    if decoder != "gpt2" or not config.decoder.add_cross_attention:
        raise CheckpointError(
            f"{folder}: its decoder is {decoder!r}, and of this family only those with a 'gpt2' decoder with "
            "cross-attention are exported; docs/add_a_family.md tells how to add another"
        )
    model = load_network(VisionEncoderDecoderModel, folder, spare=_SPARE)
    page = read_preprocessing(folder, image_px=_side(config.encoder, folder))
    scale = ScaledPixels(page)
    vision = VisionGraph(model, scale).eval()
    blank = torch.zeros((1, page.image_px, page.image_px, 3), dtype=torch.uint8)
    with torch.no_grad():
        sizes = gpt2_sizes(model.decoder, int(vision(blank).shape[3]))

    settings = model.generation_config
    own = config.decoder
    start = first_id(
        settings.decoder_start_token_id, config.decoder_start_token_id, settings.bos_token_id,
        own.bos_token_id, what="start", folder=folder,
    )  # fmt: skip
    end = first_id(settings.eos_token_id, config.eos_token_id, own.eos_token_id, what="end", folder=folder)
    pad = first_id(
        settings.pad_token_id, config.pad_token_id, own.pad_token_id, end, what="pad", folder=folder
    )
    positions = own.n_positions - 1
    decoding, ignored = read_decoding(settings, longest=positions)
    words = read_words(folder).grown(sizes.vocabulary)
    vocabulary, files = words.page(
        pad=pad, unknown=end, start=start, end=end, max_text_tokens=min(positions, 1024)
    )
    sha256, source = identify(folder)

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        found: Tensor = model(pixel_values=scale(pixels), decoder_input_ids=ids, use_cache=False).logits
        return found

    return Subject(
        family="vision-encoder-decoder",
        kind=("captioner",),
        graphs=(
            vision_graph(vision, page.image_px, sizes=sizes),
            decoder_graph(CrossStep(model.decoder), sizes, token=start),
        ),
        preprocessing=page,
        vocabulary=vocabulary,
        files=files,
        decoding=decoding,
        positions=positions,
        logits=logits,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        checkpoint_sha256=sha256,
        source={
            **source,
            "architecture": f"{config.encoder.model_type} and {decoder}",
            **({"generation_settings_ignored": ignored} if ignored else {}),
        },
        licence=read_licence(folder),
        remarks={
            "preprocessing_max_abs": check_preprocessing(folder, page),
            "texts_cut_alike": check_words(words, vocabulary, files),
        },
    )


def _side(encoder: Any, folder: Path) -> int:
    size = getattr(encoder, "image_size", None)
    side = size[0] if isinstance(size, (list, tuple)) and len(set(size)) == 1 else size
    if not isinstance(side, int):
        raise CheckpointError(f"{folder}: config.json gives the encoder no square image_size, but {size!r}")
    return side
