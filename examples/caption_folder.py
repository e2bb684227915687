"""Caption a folder into small files beside the photos: text, JSON, and alt text as XMP.

    python examples/caption_folder.py               a copy of the sample photos, in a scratch folder
    python examples/caption_folder.py my-photos     yours; the photos themselves are never written to

Run it again and only what is new is captioned. `tellapart caption FOLDER --sidecar xmp` does the same for one
kind, remembers which model wrote what, and goes on after a crash.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from tellapart import Captioner, ImageError
from tellapart.xmp import alt_text_xmp

SAMPLES = Path(__file__).parents[1] / "samples" / "photos"


def main(argv: list[str] | None = None) -> int:
    """Caption what has no sidecar yet."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments:
        folder = Path(arguments[0])
    else:
        folder = Path(tempfile.mkdtemp(prefix="tellapart-")) / "photos"
        shutil.copytree(SAMPLES, folder)
    photos = [path for path in sorted(folder.glob("*.jpg")) if not path.with_suffix(".txt").exists()]
    failed = 0
    with Captioner.open() as captioner:
        model = captioner.bundle.sha256
        results = captioner.caption_many(
            photos, on_error="yield"
        )  # lazy, in order; one failure stops nothing
        for photo, caption in zip(photos, results, strict=True):
            if isinstance(caption, ImageError):
                print(f"{photo}: {caption}", file=sys.stderr)
                failed += 1
                continue
            record = {"image": photo.name, "caption": caption.text, "confidence": caption.confidence}
            sidecars = {
                photo.with_suffix(".json"): json.dumps({**record, "model": model}) + "\n",
                photo.with_name(photo.name + ".xmp"): alt_text_xmp(caption.text, model=model),
                photo.with_suffix(".txt"): caption.text + "\n",  # last: its presence says that all is done
            }
            for path, text in sidecars.items():
                if not path.exists():  # somebody's edits may live in an XMP file
                    path.write_text(text, encoding="utf-8")
            print(f"{photo.name}: {caption.text}")
    print(f"{len(photos) - failed} captioned, {failed} failed, in {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
