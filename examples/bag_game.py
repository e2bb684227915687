"""Tell look-alike photos apart, and write one HTML file that shows whether it worked.

python examples/bag_game.py                          three drawn look-alikes
python examples/bag_game.py a.jpg b.jpg c.jpg        yours; writes bag.html
python examples/bag_game.py photos/ --html out.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tellapart import Captioner, load_image
from tellapart.pages import bag_page, photo_of

SAMPLES = Path(__file__).parents[1] / "samples" / "bag"


def main(argv: list[str] | None = None) -> int:
    """Caption the bag, print it, write the page."""
    parser = argparse.ArgumentParser(description="Tell look-alike photos apart.")
    parser.add_argument("photos", nargs="*", type=Path, default=[SAMPLES])
    parser.add_argument("--mode", choices=("contrast", "rerank", "plain"), default="contrast")
    parser.add_argument("--html", type=Path, default=Path("bag.html"))
    args = parser.parse_args(argv)
    photos = [
        photo for path in args.photos for photo in (sorted(path.glob("*.jpg")) if path.is_dir() else [path])
    ]
    with Captioner.open() as captioner:
        result = captioner.bag(photos, mode=args.mode)
        model = captioner.bundle.manifest.name
    for photo, caption, rank in zip(photos, result.captions, result.ranks, strict=True):
        print(f"{photo.name}: {caption.text} (its own photo comes {rank} of {len(photos)})")
    shown = [photo_of(photo.name, load_image(photo)) for photo in photos]
    args.html.write_text(bag_page(result, shown, mode=args.mode, model=model), encoding="utf-8")
    print(f"{result.recall_at_1:.0%} find their own photo; see {args.html}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
