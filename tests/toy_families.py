"""Toy checkpoints of other families: real configurations at toy size, random weights, a real tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

MERGES = ("Ġ a", "t h", "th e", "Ġ the", "d o", "do g", "Ġ dog", "r u", "ru n", "i n", "in g", "Ġ r", "u n")
SMOLVLM_MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<image>",
    "<end_of_utterance>",
)
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


def write_smolvlm_words(folder: Path) -> int:
    """GPT-2's bytes and merges with each digit a word, SmolVLM's marks behind them, and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from tellapart.byte_pairs import byte_signs

    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*byte_signs(), *dict.fromkeys(pair.replace(" ", "") for pair in MERGES)]
    table = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=table, merges=[tuple(pair.split(" ")) for pair in MERGES]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SMOLVLM_MARKS])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:"
        "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    return len(pieces) + len(SMOLVLM_MARKS)


def write_bert_words(folder: Path) -> int:
    """BERT's marks, letters, and pieces that go on."""
    letters = [chr(97 + index) for index in range(26)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += ["dog", "the", "run", "##ning", "!", "'", ",", ".", "-", "(", ")", ":", "?", *"0123456789"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*pieces, ""]), encoding="utf-8")
    return len(pieces)


def write_sentencepiece(folder: Path) -> int:
    """A SentencePiece of unigrams, trained here; its marks lie where SigLIP's do."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["a dog runs through the grass", "two girls with red and white kites at the beach", "it is windy"]
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 20), model_writer=file, vocab_size=60, hard_vocab_limit=False,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(str(folder / "spiece.model")).get_piece_size()


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


def make_vit_gpt2(folder: Path) -> Path:
    """A VisionEncoderDecoder at 32 px, two widths, and scales of its own in attention."""
    torch = pytest.importorskip("torch")
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    size = write_gpt2_words(folder)
    encoder = ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    decoder = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=40, vocab_size=size, bos_token_id=size - 1,
        eos_token_id=size - 1, scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False,
        add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
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


def make_blip(folder: Path) -> Path:
    """BLIP for captioning at 32 px; its start mark lies behind the tokenizer's words, as in the real ones."""
    torch = pytest.importorskip("torch")
    from transformers import BlipConfig, BlipForConditionalGeneration

    size = write_bert_words(folder)
    text = {
        "vocab_size": size + 2, "hidden_size": 32, "encoder_hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40, "bos_token_id": size,
        "eos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0, "max_length": 15,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8, "initializer_range": 0.02,
    }  # fmt: skip
    torch.manual_seed(4)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()
    liven(model)
    model.save_pretrained(folder, safe_serialization=True)
    write_processor(
        folder, "BlipImageProcessor", size={"height": 32, "width": 32}, resample=3,
        image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28],
    )  # fmt: skip
    return folder


def make_git(folder: Path) -> Path:
    """GIT at 32 px."""
    torch = pytest.importorskip("torch")
    from transformers import GitConfig, GitForCausalLM

    size = write_bert_words(folder)
    vision = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = GitConfig(
        vision_config=vision, vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=30, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(5)
    model = GitForCausalLM(config).eval()
    liven(model)
    model.generation_config.update(max_length=14)
    model.save_pretrained(folder, safe_serialization=True)
    write_clip_processor(folder)
    return folder


def make_smolvlm(folder: Path, kind: str = "SmolVLM") -> Path:
    """SmolVLM at 32 px, or Idefics3: four image tokens, two query heads to a head of keys and values."""
    torch = pytest.importorskip("torch")
    import transformers

    size = write_smolvlm_words(folder)
    start, pad, _, _, image, end = range(size - len(SMOLVLM_MARKS), size)
    text = {
        "model_type": "llama", "vocab_size": size, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1000.0,
        "max_position_embeddings": 160, "bos_token_id": start, "eos_token_id": end, "pad_token_id": pad,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=image, pad_token_id=pad
    )
    torch.manual_seed(9)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    liven(model)
    model.generation_config.update(bos_token_id=start, eos_token_id=end, pad_token_id=pad, max_new_tokens=14)
    model.save_pretrained(folder, safe_serialization=True)
    write_processor(
        folder, f"{kind}ImageProcessor", size={"longest_edge": 64}, max_image_size={"longest_edge": 32},
        do_image_splitting=True, do_pad=True, resample=1, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return folder


def make_clip(folder: Path, *, tiny: bool = False) -> Path:
    """CLIP at 32 px, with a fit larger than the cut; or as TinyCLIP is: towers of other depths and widths."""
    torch = pytest.importorskip("torch")
    from transformers import CLIPConfig, CLIPModel

    size = write_clip_words(folder)
    text = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": size - 2,
        "eos_token_id": 2, "pad_token_id": 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    if tiny:  # pruned, and newer, so its configuration names the true end mark
        vision |= {"hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 80}
        text |= {"num_hidden_layers": 1, "eos_token_id": size - 1}
    torch.manual_seed(6)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    liven(model)
    model.save_pretrained(folder, safe_serialization=True)
    write_clip_processor(folder, fit=36)
    return folder


def make_mobileclip(folder: Path) -> Path:
    """MobileCLIP at 64 px as open_clip saves it: its real trunk, a small text tower without a causal mask."""
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    from safetensors.torch import save_file

    size = write_clip_words(folder)
    vision = {
        "timm_model_name": "fastvit_mci0", "timm_model_pretrained": False, "timm_pool": "avg",
        "timm_proj": None, "timm_drop": 0.0, "timm_drop_path": 0.0, "image_size": 64,
    }  # fmt: skip
    text = {"context_length": 16, "vocab_size": size, "width": 32, "heads": 2, "layers": 2}
    text["no_causal_mask"] = True
    towers = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(10)
    model = open_clip.CustomTextCLIP(**towers).eval()
    with torch.no_grad():  # branches of a fresh trunk are so much alike that a wrong fold could pass unseen
        for name, parameter in model.named_parameters():
            if name.endswith(".gamma"):
                parameter.fill_(1.0)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    page = {
        "model_cfg": {**towers, "custom_text": True},
        "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(page), encoding="utf-8")
    return folder


def make_siglip(folder: Path) -> Path:
    """SigLIP at 32 px."""
    torch = pytest.importorskip("torch")
    from transformers import SiglipConfig, SiglipModel

    size = write_sentencepiece(folder)
    text = {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 12, "projection_size": 32,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    torch.manual_seed(8)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    liven(model, factor=2.0)
    model.save_pretrained(folder, safe_serialization=True)
    write_processor(
        folder, "SiglipImageProcessor", size={"height": 32, "width": 32}, resample=3, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    return folder


def make_clipcap(folder: Path) -> Path:
    """Our ClipCap at 32 px, with GPT-2's words beside it."""
    torch = pytest.importorskip("torch")
    import dataclasses

    from tellapart.byte_pairs import byte_signs
    from tellapart_model.clipcap import ClipCap, save_clipcap
    from tellapart_model.clipcap_config import ClipCapConfig

    size = write_gpt2_words(folder)
    torch.manual_seed(7)
    model = ClipCap(dataclasses.replace(ClipCapConfig.toy(), vocabulary_size=size)).eval()
    liven(model)
    with torch.no_grad():  # random weights never say a full stop of themselves, so it is made likely
        said = model.generate(torch.zeros(1, 3, 32, 32), stop_ids=[], beams=1)[0]
        words = model.language.transformer.wte.weight
        words[byte_signs().index(".")] = 1.02 * words[said[3]]
    save_clipcap(folder, model)
    return folder


def write_clip_processor(folder: Path, *, fit: int = 32) -> None:
    write_processor(
        folder, "CLIPImageProcessor", size={"shortest_edge": fit}, resample=3, do_center_crop=True,
        crop_size={"height": 32, "width": 32}, image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    )  # fmt: skip
