"""SmolVLM, and Idefics3, of which it is made: a prompt with the picture in it, then the answer.

The prompt is chosen when the bundle is made, so all of it but the picture is constant: it runs through the
layers inside the vision graph, and its keys and values are `cross_kv`. Its last token is not among them: it
gives the first word, as the start mark does in other decoders, and the decoder takes it in that mark's place.

One picture is one tile. Cutting it into up to 16 more, as these networks do by default, makes another prompt
for each shape of picture, and up to 17 times the work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tellapart.errors import CheckpointError, UsageError
from tellapart_export.families.llama import Prefix, Rotary, Step, llama_sizes, refuse_other_languages
from tellapart_export.graphs import ScaledPixels, decoder_graph, vision_graph
from tellapart_export.hugging_face import (
    MOST_NEW_TOKENS,
    first_id,
    identify,
    load_network,
    read_decoding,
    read_licence,
)
from tellapart_export.pictures import check_preprocessing, read_single_tile
from tellapart_export.prompts import render_prompt
from tellapart_export.subject import Subject
from tellapart_export.words import check_words, read_words, reference_tokenizer

PROMPT = "Describe this image in one short sentence."
"""What is asked where the user of the export asks nothing."""

IMAGE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
"""Tokens of the processor: a place for a vector of the picture, and what stands before and behind them."""

_SPARE = (r"\.position_ids$",)
_LONGEST = 1024
"""Most tokens of a caption that the rotary tables are made for."""


class VisionGraph(nn.Module):
    """Pixels -> keys and values of the prompt, the picture in it."""

    places: Tensor
    before: Tensor
    behind: Tensor

    def __init__(self, model: Any, pixels: ScaledPixels, prompt: Sequence[int], rotary: Rotary) -> None:
        """Take a network and the prompt's ids but the last; those of `IMAGE` are the picture's places."""
        super().__init__()
        body, ids = model.model, torch.tensor(prompt)
        self.pixels, self.tower, self.connector = pixels, body.vision_model, body.connector
        self.prefix = Prefix(body.text_model, rotary)
        self.register_buffer("places", _places_of_whole_picture(body.vision_model))
        here = (ids == model.config.image_token_id).nonzero()[:, 0]
        vectors = body.text_model.embed_tokens(ids).detach()
        self.register_buffer("before", vectors[: int(here[0])])
        self.register_buffer("behind", vectors[int(here[-1]) + 1 :])

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> cross_kv (2L, b, H, N, D)."""
        patches = self.tower.embeddings.patch_embedding(self.pixels(pixels)).flatten(2).transpose(1, 2)
        x = patches + self.places
        for layer in self.tower.encoder.layers:
            x = layer(x, None)
        image = self.connector(self.tower.post_layernorm(x))
        parts = [self.before.expand(image.shape[0], -1, -1), image]
        found: Tensor = self.prefix(torch.cat([*parts, self.behind.expand(image.shape[0], -1, -1)], 1))
        return found


def open_checkpoint(folder: Path, prompt: str = "") -> Subject:
    """The captioner in a folder.

    Args:
        folder: of the checkpoint.
        prompt: what is asked of every picture; "" is `PROMPT`.

    Raises:
        CheckpointError: not whole, damaged, or with another language model than Llama.
        ParityError: words or pixels that a bundle cannot describe.
        UsageError: a prompt that leaves no room, or holds a picture of its own.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    kind, language = config.model_type, config.text_config
    refuse_other_languages(language, folder)
    name = "Idefics3ForConditionalGeneration" if kind == "idefics3" else "SmolVLMForConditionalGeneration"
    model = load_network(getattr(transformers, name), folder, spare=_SPARE)
    page = read_single_tile(folder, image_px=config.vision_config.image_size)
    scale = ScaledPixels(page)
    words = read_words(folder)
    if words.place(IMAGE) != config.image_token_id:
        raise CheckpointError(
            f"{folder}: {IMAGE} is token {words.place(IMAGE)} to its tokenizer and {config.image_token_id} "
            "to config.json; the tokenizer belongs to another checkpoint"
        )
    ids = _prompt_ids(folder, words.kind, prompt or PROMPT, config)
    *before, last = ids
    positions = min(_LONGEST, language.max_position_embeddings - len(ids))
    if positions < 1:
        raise UsageError(
            f"the prompt takes {len(ids)} tokens, the picture among them, and the network has room for "
            f"{language.max_position_embeddings}; ask shorter"
        )
    settings = model.generation_config
    start = first_id(settings.bos_token_id, language.bos_token_id, what="start", folder=folder)
    end = first_id(settings.eos_token_id, language.eos_token_id, what="end", folder=folder)
    pad = first_id(settings.pad_token_id, config.pad_token_id, end, what="pad", folder=folder)
    decoding, ignored = read_decoding(settings, longest=positions)
    if settings.max_new_tokens is None:  # its max_length counts the prompt
        decoding = dataclasses.replace(decoding, max_new_tokens=min(MOST_NEW_TOKENS, positions))
    words = words.grown(language.vocab_size)
    # Bytes can spell everything, so nothing is unknown; that mark is never said, as a picture must not be.
    vocabulary, files = words.page(
        pad=pad, unknown=config.image_token_id, start=start, end=end, max_text_tokens=min(positions, 1024) + 2
    )
    sizes = llama_sizes(language, len(before))
    rotary = Rotary(model.model.text_model, len(before) + positions + 1)
    step = Step(model, rotary, prefix=len(before), start_id=start, last_id=last)
    sha256, source = identify(folder)

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        count = ids.shape[0]
        asked = torch.tensor([*before, last]).expand(count, -1)
        found: Tensor = model(
            input_ids=torch.cat([asked, ids[:, 1:]], 1),
            pixel_values=scale(pixels)[:, None],
            use_cache=False,
            logits_to_keep=ids.shape[1],
        ).logits
        return found

    return Subject(
        family="smolvlm",
        kind=("captioner",),
        graphs=(
            vision_graph(VisionGraph(model, scale, before, rotary), page.image_px, sizes=sizes),
            decoder_graph(step, sizes, token=end),
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
            "architecture": kind,
            "prompt": prompt or PROMPT,
            "tiles": "one, the whole picture",
            **({"generation_settings_ignored": ignored} if ignored else {}),
        },
        licence=read_licence(folder),
        remarks={
            "preprocessing_max_abs": check_preprocessing(folder, page, do_image_splitting=False),
            "texts_cut_alike": check_words(words, vocabulary, files),
        },
    )


def _prompt_ids(folder: Path, kind: str, prompt: str, config: Any) -> list[int]:
    """The whole prompt, a place for each vector of the picture among its ids."""
    tokenizer = reference_tokenizer(folder, kind)
    text = render_prompt(folder, tokenizer, prompt)
    if text.count(IMAGE) != 1:
        raise UsageError(
            f"the prompt has {text.count(IMAGE)} places for a picture and needs one; leave {IMAGE} out of it"
        )
    vision = config.vision_config
    count = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
    picture = AROUND + WHOLE + IMAGE * count + AROUND
    ids = list(tokenizer(text.replace(IMAGE, picture))["input_ids"])
    if ids.count(config.image_token_id) != count:
        raise CheckpointError(
            f"{folder}: its tokenizer makes {ids.count(config.image_token_id)} tokens of the {count} places "
            "of a picture; it belongs to another checkpoint"
        )
    return ids


def _places_of_whole_picture(tower: Any) -> Tensor:
    """(1, patches, width): the positions that the network gives to a picture that fills its square.

    Its own code finds them patch by patch with a loop over pictures, which no exporter can follow.
    """
    kept: list[Tensor] = []
    hook = tower.embeddings.position_embedding.register_forward_hook(
        lambda module, given, found: kept.append(found.detach())
    )
    side, patch = tower.config.image_size, tower.config.patch_size
    try:
        with torch.no_grad():
            whole = torch.ones(1, side // patch, side // patch, dtype=torch.bool)
            tower.embeddings(
                pixel_values=torch.zeros(1, tower.config.num_channels, side, side), patch_attention_mask=whole
            )
    finally:
        hook.remove()
    return kept[0]
