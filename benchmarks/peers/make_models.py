"""The networks of the comparison with peers, twice: as transformers loads them, and as bundles of ours.

    python benchmarks/peers/make_models.py FOLDER --photos samples/photos

Two sizes of `VisionEncoderDecoderModel`, the one captioner that transformers, optimum and optimum-intel all
run: "vit-gpt2", ViT-B/16 and GPT-2 (239 M weights), and "compact", as large as the embedded pair (which is
itself of no class that a peer can load). Their weights are random: speed does not depend on what a network
says, and 20 tokens are asked for whatever they are. Runs where torch, transformers and the export packages
are (`make bench-peers` takes .venv-dev).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tellapart.byte_pairs import byte_signs

SIZES: dict[str, dict[str, Any]] = {
    "compact": {
        "encoder": {
            "hidden_size": 192,
            "num_hidden_layers": 12,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "image_size": 224,
            "patch_size": 32,
        },
        "decoder": {"n_embd": 256, "n_layer": 4, "n_head": 8, "n_positions": 64},
        "words": 5250,
    },
    "vit-gpt2": {"encoder": {}, "decoder": {}, "words": 50257},
}


def write_words(folder: Path, count: int) -> None:
    """GPT-2's byte alphabet, made up words up to the count, and the end mark last."""
    pieces = [*byte_signs()]
    pieces += [f"w{number}" for number in range(count - len(pieces) - 1)]
    pieces.append("<|endoftext|>")
    (folder / "vocab.json").write_text(json.dumps({piece: place for place, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    page = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(page))


def write_network(folder: Path, size: dict[str, Any]) -> None:
    """A checkpoint with random weights, large enough that captions differ from photo to photo."""
    import torch
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    end = size["words"] - 1
    marks = {"bos_token_id": end, "eos_token_id": end}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(**size["encoder"]), GPT2Config(vocab_size=size["words"], **marks, **size["decoder"])
    )
    config.decoder_start_token_id = config.eos_token_id = config.pad_token_id = end
    torch.manual_seed(5)
    model = VisionEncoderDecoderModel(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1 and not any(part in name for part in ("embed", "wte", "wpe")):
                weights.mul_(3.0)
    model.generation_config.update(
        decoder_start_token_id=end, eos_token_id=end, pad_token_id=end, max_length=22
    )
    model.save_pretrained(folder, safe_serialization=True)


def main() -> int:
    """Write what is missing below the folder."""
    from tellapart_export.cli import main as export
    from tellapart_quantization.cli import main as quantize

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    args = parser.parse_args()
    for name in args.size:
        place = args.folder / name
        checkpoint, bundle, small = place / "checkpoint", place / "fp32", place / "int8"
        if not (checkpoint / "model.safetensors").exists():
            shutil.rmtree(checkpoint, ignore_errors=True)
            checkpoint.mkdir(parents=True)
            write_words(checkpoint, SIZES[name]["words"])
            write_network(checkpoint, SIZES[name])
        photos = ["--images", str(args.photos)]
        if not bundle.exists() and export([str(checkpoint), "--out", str(bundle), "--limit", "4", *photos]):
            return 1
        # Random words agree by chance: what is compared here is time.
        words = ["--scheme", "dynamic", "--min-agreement", "0", "--check-images", "4"]
        if not small.exists() and quantize([str(bundle), "--out", str(small), *words, *photos]):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
