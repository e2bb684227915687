"""`tellapart bag`: captions that tell look-alike images apart, with the proof.

A bag of one has nothing to prove and is refused here; `Captioner.bag` captions it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tellapart.captioner import Captioner
from tellapart.commands.choices import decode_options, find_images, runtime_options
from tellapart.commands.outputs import say, write_atomically
from tellapart.errors import UsageError
from tellapart.types import BagResult

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Caption the bag; a bag needs every image, so one that cannot be read ends it.

    Raises:
        TellapartError: usage, an image, the bundle, the runtime.
    """
    options, runtime = decode_options(args), runtime_options(args)
    images = find_images(args.paths)
    if len(images) < 2:
        raise UsageError(f"a bag needs at least two images to tell apart, got {len(images)}")
    if args.html is not None and args.html.resolve() in {image.resolve() for image in images}:
        raise UsageError(f"--html {args.html} is one of the images; name another file")
    with Captioner.open(args.model, runtime=runtime) as captioner:
        result = captioner.bag(images, mode=args.mode, options=options)
        if args.html is not None:
            from tellapart.image import load_image
            from tellapart.pages import bag_page, photo_of

            photos = [
                photo_of(str(image), load_image(image, max_megapixels=runtime.max_image_megapixels))
                for image in images
            ]
            model = f"{captioner.bundle.manifest.name}, {captioner.bundle.sha256}"
            write_atomically(args.html, bag_page(result, photos, mode=args.mode, model=model))
            say(f"wrote {args.html}")
    if args.json:
        print(json.dumps(bag_record(images, result), ensure_ascii=False, allow_nan=False))
    else:
        _print_table(images, result)
    return 0


def bag_record(images: list[Path], result: BagResult) -> dict[str, Any]:
    """A bag as the contract's JSON; similarity has a row per caption and a column per image."""
    return {
        "images": [str(image) for image in images],
        "captions": [
            {"image": str(image), "caption": caption.text, "rank": rank, "margin": round(margin, 6)}
            for image, caption, rank, margin in zip(
                images, result.captions, result.ranks, result.margins, strict=True
            )
        ],
        "recall_at_1": result.recall_at_1,
        "similarity": [[round(float(value), 6) for value in row] for row in result.similarity],
    }


def _print_table(images: list[Path], result: BagResult) -> None:
    width = max(len(str(image)) for image in images)
    for image, caption, rank, margin in zip(
        images, result.captions, result.ranks, result.margins, strict=True
    ):
        print(f"{image!s:<{width}}  rank {rank} of {len(images)}  margin {margin:+.3f}  {caption.text}")
    found = sum(rank == 1 for rank in result.ranks)
    print(f"{found} of {len(images)} captions pick out their own image; by chance 1 would")
