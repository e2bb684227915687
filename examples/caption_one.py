"""Caption one photo, and say how sure the model is.

python examples/caption_one.py                   a sample photo
python examples/caption_one.py my.jpg other.jpg  yours
"""

from __future__ import annotations

import sys
from pathlib import Path

from tellapart import Captioner, DecodeOptions, ImageError, UnsureCaption

SAMPLE = Path(__file__).parents[1] / "samples" / "photos" / "cameraman.jpg"


def main(argv: list[str] | None = None) -> int:
    """Print one line for each photo."""
    photos = (sys.argv[1:] if argv is None else argv) or [str(SAMPLE)]
    options = DecodeOptions(min_confidence="default")  # below the bundle's own threshold: not a fact
    failed = 0
    with Captioner.open() as captioner:  # open once, caption many: opening costs more than a caption
        for photo in photos:
            try:
                caption = captioner.caption(photo, options=options)
            except ImageError as error:
                print(f"{photo}: {error}", file=sys.stderr)
                failed += 1
                continue
            sure = "unsure" if isinstance(caption, UnsureCaption) else "sure enough"
            print(f"{photo}: {caption.text} ({sure}, confidence {caption.confidence:.2f})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
