"""Draw the pictures of `how_it_works.md`: plain SVG, no fonts or scripts of others.

python docs/drawings/draw.py        writes them beside this file
"""

from __future__ import annotations

from html import escape
from pathlib import Path

INK, SOFT, LINE = "#1d1f21", "#62676d", "#9aa0a6"
BLUE, GREEN, RED, PAPER, CARD = "#1c6e8c", "#1f7a45", "#b3402e", "#ffffff", "#eef3f5"
SHIRTS = {"blue": "#2654be", "red": "#c82024", "yellow": "#f0c828"}


def text(x: float, y: float, words: str, *, size: int = 15, colour: str = INK, anchor: str = "middle") -> str:
    """One line of text; y is its baseline."""
    style = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def box(
    x: float, y: float, width: float, height: float, *lines: str, colour: str = BLUE, small_from: int = 1
) -> str:
    """A rounded box with lines of text in its middle; those from `small_from` on are small."""
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="{CARD}" stroke="{colour}" '
        'stroke-width="2"/>'
    ]
    top = y + height / 2 - (len(lines) - 1) * 9.5 + 5
    for place, line in enumerate(lines):
        size, ink = (15, INK) if place < small_from else (12, SOFT)
        parts.append(text(x + width / 2, top + place * 19, line, size=size, colour=ink))
    return "".join(parts)


def arrow(x1: float, y1: float, x2: float, y2: float, *, colour: str = LINE, label: str = "") -> str:
    """A straight arrow, with a word above its middle."""
    line = (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="2.5" '
        f'marker-end="url(#tip-{colour[1:]})"/>'
    )
    return line + (text((x1 + x2) / 2, (y1 + y2) / 2 - 7, label, size=12, colour=SOFT) if label else "")


def child(x: float, y: float, shirt: str) -> str:
    """A small photo, 84 x 84, of a child on a meadow."""
    return (
        f'<g transform="translate({x} {y})"><rect width="84" height="84" rx="6" fill="#cfe3f3"/>'
        '<rect y="44" width="84" height="40" rx="6" fill="#6f9f4c"/>'
        '<rect x="36" y="60" width="5" height="17" fill="#343a4e"/><rect x="45" y="60" width="5" height="17" '
        f'fill="#343a4e"/><rect x="33" y="36" width="20" height="27" rx="6" fill="{SHIRTS[shirt]}"/>'
        '<circle cx="43" cy="26" r="10" fill="#e2b08e"/><circle cx="67" cy="70" r="6" fill="#f5f5f0"/></g>'
    )


def page(width: int, height: int, title: str, *parts: str) -> str:
    """A whole drawing; the title is what a screen reader says."""
    tips = "".join(
        f'<marker id="tip-{colour[1:]}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" '
        f'markerHeight="6" orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
        for colour in (LINE, GREEN, RED, BLUE)
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif">\n<title>{escape(title)}</title>\n<defs>{tips}</defs>\n'
        f'<rect width="{width}" height="{height}" rx="14" fill="{PAPER}"/>\n{body}\n</svg>\n'
    )


def one_pass() -> str:
    """A photo on its way to words and to a place among the words."""
    return page(
        860, 300,
        "One vision pass gives the decoder its keys and values and the retriever its embedding",
        child(24, 92, "red"), text(66, 200, "a photo", colour=SOFT, size=13),
        arrow(116, 134, 168, 134),
        box(172, 92, 150, 84, "vision", "once per photo"),
        arrow(326, 116, 428, 76, label=""), text(352, 76, "keys and values", size=12, colour=SOFT),
        arrow(326, 152, 428, 216), text(352, 212, "embedding", size=12, colour=SOFT),
        box(432, 32, 150, 84, "decoder", "once per word"),
        arrow(586, 74, 652, 74),
        text(760, 66, "“A boy in a red shirt", size=14), text(760, 86, "plays with a ball”", size=14),
        arrow(744, 104, 744, 172),
        box(669, 176, 150, 84, "text", "once per caption"),
        box(432, 176, 150, 84, "cosine", "does it fit?", colour=GREEN),
        arrow(666, 218, 588, 218),
    )  # fmt: skip


def self_retrieval() -> str:
    """A caption that picks its own photo earns, one that fits its look-alikes does not."""

    def row(y: float, caption: str, picked: str, verdict: str, colour: str) -> list[str]:
        shirts = list(SHIRTS)
        parts = [
            box(30, y + 12, 300, 60, caption, colour=LINE),
            arrow(334, y + 42, 396, y + 42, label="reads"),
        ]
        for place, shirt in enumerate(shirts):
            x = 410 + place * 98
            parts.append(child(x, y, shirt))
            if shirt == picked:
                parts.append(
                    f'<rect x="{x - 4}" y="{y - 4}" width="92" height="92" rx="9" fill="none" '
                    f'stroke="{colour}" stroke-width="4"/>'
                )
        return [*parts, text(714, y + 47, verdict, size=15, colour=colour, anchor="start")]

    return page(
        880, 330,
        "A caption that picks its own photo out of look-alikes earns a reward, a vague one does not",
        text(180, 36, "caption of the red one", colour=SOFT, size=13),
        text(547, 36, "a frozen retriever picks one of the bag", colour=SOFT, size=13),
        *row(58, "a boy plays on the grass", "blue", "no reward", RED),
        *row(196, "a boy in a red shirt plays", "red", "reward", GREEN),
        text(440, 314, "The captioner never sees the others: the words must carry it.", size=13, colour=SOFT),
    )  # fmt: skip


def richer() -> str:
    """Human captions that become one, and bags that grow harder."""
    human = ["A dog runs.", "A brown dog in the snow.", "A dog with a red collar."]
    cards = [box(24, 58 + place * 62, 216, 46, line, colour=LINE) for place, line in enumerate(human)]
    arrows = [arrow(244, 81 + place * 62, 318, 138, colour=LINE) for place in range(3)]
    bars = []
    for place, size in enumerate((2, 3, 5, 7)):
        x, height = 620 + place * 58, 30 + place * 34
        bars.append(
            f'<rect x="{x}" y="{222 - height}" width="42" height="{height}" rx="5" fill="{BLUE}" '
            f'opacity="{0.45 + place * 0.17}"/>'
        )
        bars.append(text(x + 21, 240, str(size), size=13))
    return page(
        880, 276,
        "Sparse human captions are merged into a richer one; bags of look-alikes grow in training",
        text(132, 36, "what people wrote", colour=SOFT, size=13), *cards, *arrows,
        box(
            322, 96, 240, 84, "A brown dog with a red", "collar runs in the snow.",
            colour=GREEN, small_from=2,
        ),
        text(442, 206, "one richer caption to learn from", colour=SOFT, size=13),
        text(728, 36, "then: photos in a bag, by epoch", colour=SOFT, size=13), *bars,
    )  # fmt: skip


DRAWINGS = {"one_pass.svg": one_pass, "self_retrieval.svg": self_retrieval, "richer.svg": richer}


def main() -> None:
    """Write all drawings."""
    for name, draw in DRAWINGS.items():
        Path(__file__).with_name(name).write_text(draw(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
