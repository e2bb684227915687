"""Draw `samples/bag`: three pictures that are the same but for the colour of one shirt.

Look-alike pictures with a known difference are hard to find and easy to draw; tests draw them too. Pure
code, so there is nothing to license. Drawn at three times the size and shrunk, which gives soft edges.

    .venv/bin/python samples/draw_bag.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour: TypeAlias = tuple[int, int, int]

SHIRTS: dict[str, Colour] = {"blue": (38, 84, 190), "red": (200, 32, 36), "yellow": (240, 200, 40)}
"""The one detail: name of the file, colour of the shirt."""

SIDE_PX = 360
OVERSAMPLING = 3


def _meadow(side_px: int) -> Image.Image:
    """Sky over grass, with the same grain each time."""
    rows = np.linspace(0.0, 1.0, side_px)[:, None, None]
    sky = np.array([120.0, 170.0, 225.0]) * (1 - rows) + np.array([225.0, 235.0, 245.0]) * rows
    grass = np.array([96.0, 150.0, 62.0]) * (1 - rows) + np.array([52.0, 112.0, 36.0]) * rows
    colours = np.where(rows < 0.48, sky, grass) * np.ones((1, side_px, 1))
    grain = np.random.default_rng(7).normal(0.0, 14.0, (side_px, side_px, 1))
    colours[int(0.48 * side_px) :] += grain[int(0.48 * side_px) :]
    return Image.fromarray(colours.clip(0, 255).astype(np.uint8))


def draw_scene(shirt: Colour, *, side_px: int = SIDE_PX) -> Image.Image:
    """A child with a ball on a meadow beside a tree.

    Args:
        shirt: RGB in 0..255, the only thing that differs between the pictures.
        side_px: width and height.

    Returns:
        A square RGB image; equal arguments give equal pixels.
    """
    big = side_px * OVERSAMPLING
    scene = _meadow(big).filter(ImageFilter.GaussianBlur(OVERSAMPLING / 2))
    draw = ImageDraw.Draw(scene)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        return left * big, top * big, right * big, bottom * big

    def line(points: list[tuple[float, float]], colour: Colour, width: float) -> None:
        corners = [(x * big, y * big) for x, y in points]
        draw.line(corners, fill=colour, width=round(width * big), joint="curve")

    # A tree line far away, one tree near.
    for i in range(14):
        x = i / 13
        draw.ellipse(box(x - 0.06, 0.40 + 0.02 * (i % 3), x + 0.06, 0.52), fill=(58, 104, 60))
    draw.rectangle(box(0.14, 0.30, 0.19, 0.66), fill=(96, 70, 46))
    for x, y, radius in [(0.10, 0.24, 0.11), (0.22, 0.22, 0.12), (0.16, 0.13, 0.11), (0.16, 0.28, 0.12)]:
        draw.ellipse(box(x - radius, y - radius, x + radius, y + radius), fill=(46, 110, 44))
    # The child: shadow, legs, shirt, arms, head.
    skin: Colour = (226, 176, 142)
    draw.ellipse(box(0.42, 0.87, 0.78, 0.93), fill=(44, 88, 34))
    line([(0.57, 0.66), (0.54, 0.78), (0.52, 0.89)], (52, 58, 78), 0.055)
    line([(0.62, 0.66), (0.66, 0.77), (0.68, 0.89)], (52, 58, 78), 0.055)
    line([(0.54, 0.46), (0.46, 0.55), (0.41, 0.48)], skin, 0.035)
    line([(0.65, 0.46), (0.72, 0.56), (0.77, 0.62)], skin, 0.035)
    draw.rounded_rectangle(box(0.525, 0.42, 0.665, 0.68), radius=0.04 * big, fill=shirt)
    line([(0.55, 0.455), (0.50, 0.51)], shirt, 0.05)
    line([(0.64, 0.455), (0.69, 0.52)], shirt, 0.05)
    draw.ellipse(box(0.535, 0.26, 0.655, 0.41), fill=skin)
    draw.pieslice(box(0.525, 0.24, 0.665, 0.40), 175, 365, fill=(84, 54, 32))
    # A ball on the grass.
    draw.ellipse(box(0.79, 0.80, 0.89, 0.90), fill=(245, 245, 240), outline=(60, 60, 60), width=big // 240)
    return scene.resize((side_px, side_px), Image.Resampling.LANCZOS)


def main() -> None:
    """Write one JPEG per shirt beside this file."""
    folder = Path(__file__).parent / "bag"
    folder.mkdir(exist_ok=True)
    for name, shirt in SHIRTS.items():
        draw_scene(shirt).save(folder / f"{name}.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()
