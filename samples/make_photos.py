"""Make `samples/photos` again out of the pictures inside scikit-image's wheel.

Only files that scikit-image itself states to be CC0 or in the public domain are taken; `SOURCES.md` quotes
what it says of each. Run it where scikit-image is installed (`make check` makes such an environment):

    .venv-dev/bin/python samples/make_photos.py
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image

PHOTOS = {
    "astronaut.jpg": "astronaut.png",
    "cameraman.jpg": "camera.png",
    "cat.jpg": "chelsea.png",
    "coffee.jpg": "coffee.png",
    "rocket.jpg": "rocket.jpg",
}
"""Name here: name in `skimage/data`."""

LONGEST_SIDE_PX = 512
JPEG_QUALITY = 88


def shrink(photo: Image.Image) -> Image.Image:
    """The photo in RGB, its longer side at most `LONGEST_SIDE_PX`; the shape is kept."""
    scale = min(1.0, LONGEST_SIDE_PX / max(photo.size))
    width, height = (round(side * scale) for side in photo.size)
    return photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    """Write every photo of `PHOTOS` beside this file."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("scikit-image is not installed: pip install scikit-image")
    origin = Path(spec.origin).parent / "data"
    folder = Path(__file__).parent / "photos"
    folder.mkdir(exist_ok=True)
    for name, source in PHOTOS.items():
        with Image.open(origin / source) as photo:
            shrink(photo).save(folder / name, quality=JPEG_QUALITY, optimize=True)


if __name__ == "__main__":
    main()
