"""Every family at its true size, random weights, against torch: greedy tokens, logits, rows, on each target.

    python benchmarks/export_families.py --images photos.tar

Random weights ask more of a comparison than trained ones do: the best two words often lie close together.
They are enlarged a little, so that captions differ from photo to photo. Words are a toy's, filled up to the
true number. Each family is made, exported and compared in a process of its own; a line of the table is
printed when it is done.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

LARGER = 3.0
"""Random weights are multiplied by this."""

_SIZE, _HALF = {"height": 224, "width": 224}, [0.5] * 3

HEADER = (
    "| family | parameters | target | photos equal | draws | tokens | max logit error | max row error | "
    "graphs MiB | minutes | peak GiB |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def make_vit_gpt2(folder: Path) -> None:
    """ViT-B/16 and GPT-2, as nlpconnect's."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    from toy_families import write_gpt2_words, write_processor

    end = write_gpt2_words(folder) - 1
    text = GPT2Config(add_cross_attention=True, is_decoder=True, bos_token_id=end, eos_token_id=end)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), text)
    config.decoder_start_token_id = config.eos_token_id = config.pad_token_id = end
    model = VisionEncoderDecoderModel(config)
    marks = {"decoder_start_token_id": end, "eos_token_id": end, "pad_token_id": end}
    model.generation_config.update(**marks)
    _save(model, folder)
    size = {"height": 224, "width": 224}
    write_processor(
        folder, "ViTImageProcessor", size=size, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def make_blip(folder: Path) -> None:
    """BLIP for captioning, base."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    from toy_families import write_bert_words, write_processor

    write_bert_words(folder)
    text = {"vocab_size": 30524, "num_attention_heads": 12, "bos_token_id": 30522, "eos_token_id": 2}
    text |= {"sep_token_id": 3, "pad_token_id": 0}
    vision = {"image_size": 384, "initializer_range": 0.02}
    _save(BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)), folder)
    write_processor(
        folder, "BlipImageProcessor", size={"height": 384, "width": 384}, resample=3,
        image_mean=[0.481, 0.458, 0.408], image_std=[0.269, 0.261, 0.276],
    )  # fmt: skip


def make_git(folder: Path) -> None:
    """GIT, base."""
    from transformers import GitConfig, GitForCausalLM

    from toy_families import write_bert_words

    write_bert_words(folder)
    _save(GitForCausalLM(GitConfig(bos_token_id=2, eos_token_id=3, pad_token_id=0)), folder)
    _write_clip_processor(folder)


def make_clipcap(folder: Path) -> None:
    """Our ClipCap at the size of its authors'."""
    from tellapart_model.clipcap import ClipCap, save_clipcap
    from tellapart_model.clipcap_config import ClipCapConfig
    from toy_families import liven, write_gpt2_words

    write_gpt2_words(folder)
    model = ClipCap(ClipCapConfig()).eval()
    liven(model, factor=LARGER)
    save_clipcap(folder, model)


def make_smolvlm(folder: Path) -> None:
    """SmolVLM-256M: a SigLIP of 512 px, SmolLM2-135M, 64 vectors a picture."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    from toy_families import SMOLVLM_MARKS, write_processor, write_smolvlm_words

    size = write_smolvlm_words(folder)
    start, pad, _, _, image, end = range(size - len(SMOLVLM_MARKS), size)
    text = {
        "model_type": "llama", "vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "bos_token_id": start, "eos_token_id": end,
        "pad_token_id": pad,
    }  # fmt: skip
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    }  # fmt: skip
    model = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config=text, vision_config=vision, scale_factor=4, image_token_id=image, pad_token_id=pad
        )
    )
    model.generation_config.update(bos_token_id=start, eos_token_id=end, pad_token_id=pad)
    _save(model, folder)
    write_processor(
        folder, "SmolVLMImageProcessor", size={"longest_edge": 2048}, max_image_size={"longest_edge": 512},
        do_image_splitting=True, do_pad=True, resample=1, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip


def make_clip(folder: Path) -> None:
    """CLIP ViT-B/32."""
    from transformers import CLIPConfig, CLIPModel

    from toy_families import write_clip_words

    write_clip_words(folder)
    # 2 is what the published checkpoints say, and means the largest id of a text.
    _save(CLIPModel(CLIPConfig(text_config={"eos_token_id": 2})), folder)
    _write_clip_processor(folder)


def make_siglip(folder: Path) -> None:
    """SigLIP, base, 224 px."""
    from transformers import SiglipConfig, SiglipModel

    from toy_families import write_processor, write_sentencepiece

    write_sentencepiece(folder)
    _save(SiglipModel(SiglipConfig()), folder)
    size = {"height": 224, "width": 224}
    write_processor(
        folder, "SiglipImageProcessor", size=size, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


MAKERS: dict[str, Callable[[Path], None]] = {
    "vision-encoder-decoder": make_vit_gpt2,
    "blip": make_blip,
    "git": make_git,
    "clipcap": make_clipcap,
    "smolvlm": make_smolvlm,
    "clip": make_clip,
    "siglip": make_siglip,
}


def main() -> int:
    """Print the table; the exit status is 1 where a family breaks a promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder or tar of photos")
    parser.add_argument("--limit", type=int, default=100, help="photos")
    parser.add_argument("--tokens", type=int, default=20, help="longest caption")
    parser.add_argument("--target", nargs="+", default=["onnx", "openvino"])
    parser.add_argument("--family", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--one", choices=MAKERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        compare(arguments.one, arguments)
        return 0
    print(HEADER, flush=True)
    status = 0
    for family in arguments.family:
        command = [sys.executable, "-W", "ignore", __file__, "--one", family, *_own_flags(arguments)]
        status |= min(1, subprocess.run(command, check=False).returncode)
    return status


def compare(family: str, arguments: argparse.Namespace) -> None:
    """Make one checkpoint, export it, print its lines."""
    import torch

    from tellapart_export.build import ExportOptions, export_bundle
    from tellapart_export.families import open_checkpoint

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as base:
        checkpoint, bundle = Path(base) / "checkpoint", Path(base) / "bundle"
        MAKERS[family](checkpoint)
        subject = open_checkpoint(checkpoint)
        parameters, longest = subject.parameters, arguments.tokens if subject.logits else None
        del subject
        started_s = time.monotonic()
        options = ExportOptions(
            targets=tuple(arguments.target),
            images=arguments.images,
            limit=arguments.limit,
            max_new_tokens=longest,
            progress=True,
        )
        manifest = export_bundle(checkpoint, bundle, options)
        minutes = (time.monotonic() - started_s) / 60
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for number, target in enumerate(arguments.target):
        found: dict[str, Any] = dict(manifest.parity if number == 0 else manifest.parity[target])
        suffixes = (".onnx",) if target == "onnx" else (".xml", ".bin")
        mib = sum(entry.bytes for name, entry in manifest.files.items() if name.endswith(suffixes)) / 2**20
        rows = max((entry["max_abs"] for entry in found.get("embeddings", {}).values()), default=None)
        cells = [
            family,
            f"{parameters / 1e6:.0f} M",
            target,
            found.get("greedy_tokens_equal", "-"),
            found.get("greedy_draws", "-"),
            found.get("greedy_tokens_compared", "-"),
            f"{found['max_logit_error']:.1e}" if "max_logit_error" in found else "-",
            "-" if rows is None else f"{rows:.1e}",
            f"{mib:.0f}",
            f"{minutes:.1f}" if number == 0 else "",
            f"{peak_gib:.1f}" if number == 0 else "",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def _own_flags(arguments: argparse.Namespace) -> list[str]:
    flags = ["--images", str(arguments.images), "--limit", str(arguments.limit)]
    return [*flags, "--tokens", str(arguments.tokens), "--target", *arguments.target]


def _save(model: Any, folder: Path) -> None:
    from toy_families import liven

    model.eval()
    liven(model, factor=LARGER)
    model.save_pretrained(folder, safe_serialization=True)


def _write_clip_processor(folder: Path) -> None:
    page = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 224},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "do_rescale": True,
        "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(page), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
