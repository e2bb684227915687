"""Toy checkpoints of other families: real configurations at toy size, random weights, a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

MERGES = ("Ġ a", "t h", "th e", "Ġ the", "d o", "do g", "Ġ dog", "r u", "ru n", "i n", "in g", "Ġ r", "u n")
CLIP_MERGES = ("d o", "do g</w>", "t h", "th e</w>", "r u", "ru n", "i n", "in g</w>", "a t</w>")


def write_gpt2_words(folder: Path) -> int:
    """GPT-2's byte alphabet, a few merges and the end mark; returns how many words there are."""
    from tellapart.byte_pairs import byte_signs

    pieces = [*byte_signs(), *dict.fromkeys(pair.replace(" ", "") for pair in MERGES), "<|endoftext|>"]
    write_pairs(folder, pieces, MERGES)
    return len(pieces)


def write_clip_words(folder: Path) -> int:
    """CLIP's byte alphabet with and without the end of a word, a few merges, and the marks."""
    from tellapart.byte_pairs import byte_signs

    signs = byte_signs()
    pieces = [*signs, *(f"{sign}</w>" for sign in signs)]
    pieces += [pair.replace(" ", "") for pair in CLIP_MERGES]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    write_pairs(folder, pieces, CLIP_MERGES)
    return len(pieces)


def write_pairs(folder: Path, pieces: list[str], merges: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = {piece: index for index, piece in enumerate(pieces)}
    assert len(table) == len(pieces)
    (folder / "vocab.json").write_text(json.dumps(table), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def write_bert_words(folder: Path) -> int:
    """BERT's marks, letters, and pieces that go on."""
    letters = [chr(97 + index) for index in range(26)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += ["dog", "the", "run", "##ning", "!", "'", ",", ".", "-", "(", ")", ":", "?", *"0123456789"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*pieces, ""]), encoding="utf-8")
    return len(pieces)


def write_processor(folder: Path, kind: str, **settings: Any) -> None:
    """`preprocessor_config.json` with the settings that matter."""
    page = {
        "image_processor_type": kind,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        **settings,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(page), encoding="utf-8")


def liven(network: Any, *, factor: float = 8.0) -> None:
    """Make random weights large enough that captions differ from picture to picture."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and "embed" not in name and "wte" not in name and "wpe" not in name:
                parameter.mul_(factor)


def make_vit_gpt2(folder: Path, *, wide: bool = False, **gpt2: Any) -> Path:
    """A VisionEncoderDecoder at 32 px; `wide` gives encoder and decoder other widths."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    size = write_gpt2_words(folder)
    encoder = ViTConfig(
        hidden_size=48 if wide else 32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40, "vocab_size": size, **gpt2}
    marks = {"bos_token_id": size - 1, "eos_token_id": size - 1}
    decoder = GPT2Config(**settings, **marks, add_cross_attention=True, is_decoder=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = config.eos_token_id = config.pad_token_id = size - 1
    torch.manual_seed(3)
    model = VisionEncoderDecoderModel(config).eval()
    liven(model)
    model.generation_config.update(
        decoder_start_token_id=size - 1,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
        max_length=17,
        num_beams=4,
    )
    model.save_pretrained(folder, safe_serialization=True)
    write_processor(
        folder, "ViTImageProcessor", size={"height": 32, "width": 32}, resample=2, image_mean=[0.5, 0.4, 0.3],
        image_std=[0.5, 0.25, 0.2],
    )  # fmt: skip
    return folder
