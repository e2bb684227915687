"""Images that are no photos, drawn with Pillow: what a captioner should say it is unsure about.

Used to fit the bundle's confidence and, with other seeds and kinds that the fit never saw, to measure it. No
file and no foreign picture is needed; equal arguments give equal pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

PixelArray = npt.NDArray[np.uint8]
Draw = Callable[[np.random.Generator, int], PixelArray]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def non_photos(
    kinds: tuple[str, ...], *, each: int, seed: int, side_px: int = 224
) -> Iterator[tuple[str, PixelArray]]:
    """Draw non-photos.

    Args:
        kinds: of `FITTED_KINDS` and `HELD_OUT_KINDS`.
        each: how many of each kind.
        seed: of all that is drawn.
        side_px: height and width.

    Yields:
        Kind and (side_px, side_px, 3) uint8 RGB.
    """
    for kind in kinds:
        for number in range(each):
            generator = np.random.default_rng([seed, _ALL.index(kind), number])
            yield kind, _KINDS[kind](generator, side_px)


def _blank(generator: np.random.Generator, side: int) -> PixelArray:
    """White, black or grey, as a covered or overexposed sensor gives it: a level or two of noise at most."""
    level = int(generator.choice([0, 4, 16, 128, 240, 251, 255]))
    noise = generator.integers(-2, 3, (side, side, 3)) * int(generator.integers(2))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


def _flat(generator: np.random.Generator, side: int) -> PixelArray:
    colour = generator.integers(0, 256, 3)
    return np.broadcast_to(colour.astype(np.uint8), (side, side, 3)).copy()


def _noise(generator: np.random.Generator, side: int) -> PixelArray:
    """Uniform or normal, in colour or grey, by pixel or in coarser cells."""
    cell = int(generator.choice([1, 1, 2, 4, 8, 16]))
    count = -(-side // cell)
    channels = int(generator.choice([1, 3]))
    if generator.integers(2):
        values = generator.integers(0, 256, (count, count, channels)).astype(float)
    else:
        values = generator.normal(
            generator.uniform(40, 215), generator.uniform(10, 70), (count, count, channels)
        )
    grown = np.repeat(np.repeat(values, cell, axis=0), cell, axis=1)[:side, :side]
    return np.clip(np.broadcast_to(grown, (side, side, 3)), 0, 255).astype(np.uint8)


def _gradient(generator: np.random.Generator, side: int) -> PixelArray:
    """Between two colours, along a line or outwards from a point."""
    y, x = np.mgrid[0:side, 0:side] / side
    if generator.integers(2):
        angle = generator.uniform(0, 2 * math.pi)
        ramp = x * math.cos(angle) + y * math.sin(angle)
    else:
        ramp = np.hypot(x - generator.uniform(), y - generator.uniform())
    ramp = (ramp - ramp.min()) / np.ptp(ramp)
    first, last = generator.integers(0, 256, (2, 3))
    return np.asarray(first + ramp[..., None] * (last - first), np.uint8)


def _text(generator: np.random.Generator, side: int) -> PixelArray:
    """A page of made-up words, dark on light or the other way round."""
    paper, ink = _paper(generator)
    image, draw = _canvas(side, paper)
    size = int(generator.integers(7, 26))
    font = _font(size)
    margin = int(generator.integers(2, side // 8))
    top = margin
    while top < side - margin:
        words = " ".join(_word(generator) for _ in range(side // size))
        width = side if generator.uniform() < 0.85 else side * generator.uniform(0.2, 0.8)  # a paragraph ends
        draw.text((margin, top), words[: max(1, int(width / size * 2))], fill=ink, font=font)
        top += int(size * generator.uniform(1.1, 1.6))
    draw.rectangle((side - margin, 0, side, side), fill=paper)
    return np.asarray(image)


def _drawing(generator: np.random.Generator, side: int) -> PixelArray:
    """Lines, shapes and stick figures on plain paper."""
    paper, ink = _paper(generator)
    image, draw = _canvas(side, paper)
    coloured = bool(generator.integers(2))
    for _ in range(int(generator.integers(2, 12))):
        fill = _colour(generator) if coloured and generator.integers(2) else None
        line = _colour(generator) if coloured else ink
        width = int(generator.integers(1, 6))
        left, top = generator.integers(0, side, 2).tolist()
        right, bottom = left + int(generator.integers(8, side)), top + int(generator.integers(8, side))
        shape = int(generator.integers(5))
        if shape == 0:
            draw.ellipse((left, top, right, bottom), fill=fill, outline=line, width=width)
        elif shape == 1:
            draw.rectangle((left, top, right, bottom), fill=fill, outline=line, width=width)
        elif shape == 2:
            corners = [
                tuple(point)
                for point in generator.integers(0, side, (int(generator.integers(3, 7)), 2)).tolist()
            ]
            draw.polygon(corners, fill=fill, outline=line)
        elif shape == 3:
            draw.line(
                [tuple(p) for p in generator.integers(0, side, (4, 2)).tolist()], fill=line, width=width
            )
        else:
            _stick_figure(draw, left, top, int(generator.integers(side // 6, side // 2)), line, width)
    return np.asarray(image)


def _pattern(generator: np.random.Generator, side: int) -> PixelArray:
    """Stripes and chequerboards."""
    y, x = np.mgrid[0:side, 0:side]
    cell = int(generator.integers(3, side // 4))
    stripes = ((x + y * int(generator.integers(0, 2))) // cell) % 2
    place = stripes if generator.integers(2) else (x // cell + y // cell) % 2
    colours = generator.integers(0, 256, (2, 3))
    return np.asarray(colours[place], np.uint8)


def _chart(generator: np.random.Generator, side: int) -> PixelArray:
    """Bars or a line between axes, with labels."""
    image, draw = _canvas(side, (255, 255, 255))
    low, left = side - side // 8, side // 8
    draw.line((left, side // 10, left, low, side - 5, low), fill=(0, 0, 0), width=2)
    count = int(generator.integers(3, 12))
    heights = generator.uniform(0.05, 0.75, count) * side
    step = (side - left - 8) / count
    points = [(left + 4 + step * (place + 0.5), low - float(height)) for place, height in enumerate(heights)]
    colour = _colour(generator)
    if generator.integers(2):
        draw.line(points, fill=colour, width=3)
    else:
        for x, y in points:
            draw.rectangle((x - step * 0.35, y, x + step * 0.35, low), fill=colour)
    for x, _ in points:
        draw.text((x - 4, low + 3), str(int(generator.integers(0, 100))), fill=(0, 0, 0), font=_font(9))
    draw.text((left, 2), " ".join(_word(generator) for _ in range(3)), fill=(0, 0, 0), font=_font(12))
    return np.asarray(image)


def _screen(generator: np.random.Generator, side: int) -> PixelArray:
    """A window with a title bar, buttons and lines of text."""
    paper, ink = _paper(generator)
    image, draw = _canvas(side, paper)
    draw.rectangle((0, 0, side, side // 10), fill=_colour(generator))
    draw.text((5, 3), _word(generator), fill=(255, 255, 255), font=_font(13))
    for row in range(int(generator.integers(3, 9))):
        top = side // 10 + 6 + row * side // 9
        if generator.integers(3):
            words = " ".join(_word(generator) for _ in range(int(generator.integers(2, 7))))
            draw.text((8, top), words, fill=ink, font=_font(11))
        else:
            box = (8, top, 8 + int(generator.integers(30, side - 20)), top + side // 12)
            draw.rounded_rectangle(box, radius=4, fill=_colour(generator), outline=ink)
    return np.asarray(image)


def _stick_figure(draw: Any, x: int, y: int, size: int, ink: tuple[int, ...], width: int) -> None:
    head = size // 4
    draw.ellipse((x - head // 2, y, x + head // 2, y + head), outline=ink, width=width)
    hip = y + head + size // 2
    draw.line((x, y + head, x, hip), fill=ink, width=width)
    for foot in (-1, 1):
        draw.line((x, hip, x + foot * size // 4, hip + size // 2), fill=ink, width=width)
        draw.line(
            (x, y + head + size // 8, x + foot * size // 3, y + head + size // 3), fill=ink, width=width
        )


def _canvas(side: int, paper: tuple[int, ...]) -> tuple[Any, Any]:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (side, side), paper)
    return image, ImageDraw.Draw(image)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _paper(generator: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Colours of paper and ink, far enough apart to be read."""
    light = tuple(generator.integers(215, 256, 3).tolist())
    dark = tuple(generator.integers(0, 70, 3).tolist())
    return (light, dark) if generator.uniform() < 0.8 else (dark, light)


def _colour(generator: np.random.Generator) -> tuple[int, ...]:
    return tuple(generator.integers(0, 256, 3).tolist())


def _word(generator: np.random.Generator) -> str:
    return "".join(generator.choice(list(_LETTERS), int(generator.integers(2, 10))))


_KINDS: dict[str, Draw] = {
    "blank": _blank, "flat": _flat, "noise": _noise, "gradient": _gradient, "text": _text,
    "drawing": _drawing, "pattern": _pattern, "chart": _chart, "screen": _screen,
}  # fmt: skip
_ALL = tuple(_KINDS)

FITTED_KINDS = ("blank", "flat", "noise", "gradient", "text", "drawing")
"""What a confidence is fitted on."""

HELD_OUT_KINDS = ("pattern", "chart", "screen")
"""What it is only measured on."""
