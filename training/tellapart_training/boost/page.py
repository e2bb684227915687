"""The HTML of a boost: figures before and after, drops by rule, and random examples with their photos.

As the SDK's pages: one file that loads nothing, no scripts, a content policy that forbids the rest, and
everything from outside escaped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tellapart.errors import ImageError
from tellapart.image import load_image
from tellapart.pages import Photo, photo_of
from tellapart_training.boost.options import BoostOptions
from tellapart_training.images import ImageSource

EXAMPLES = 50

_STYLE = """
:root { --page: #f6f6f3; --card: #ffffff; --ink: #1d1f21; --soft: #62676d; --line: #dcddd8;
  --accent: #1c6e8c; --new: #1f7a45; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #16181a; --card: #1f2225; --ink: #eceeee;
  --soft: #a2a8ad; --line: #363b40; --accent: #4fb0d2; --new: #63c48b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.8rem; letter-spacing: -0.015em; }
h2 { margin: 2.8rem 0 .6rem; font-size: 1.25rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft { color: var(--soft); } .small { font-size: .85rem; }
.tiles { display: grid; gap: 1rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(12rem, 100%), 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: .9rem 1.1rem; }
.tile b { display: block; font-size: 2rem; line-height: 1.2; color: var(--accent); letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tables { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; background: var(--card);
  border: 1px solid var(--line); }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .3rem; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
th:first-child { text-align: left; } thead th { color: var(--soft); font-size: .85rem; }
.examples { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
figure { margin: 0; display: flex; flex-direction: column; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
figure img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--page); }
figcaption { padding: .8rem 1rem 1rem; overflow-wrap: anywhere; }
figcaption strong { display: block; font-weight: 600; margin-bottom: .3rem; }
mark { background: none; color: var(--new); } ul { margin: .4rem 0 0; padding-left: 1.1rem; }
li { color: var(--soft); font-size: .85rem; }
"""
_ROWS = (
    ("captions", "captions"), ("words", "words per caption"), ("content_words", "content words per caption"),
    ("attributes", "attributes per caption"), ("vocabulary", "vocabulary"),
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """One image as the page shows it."""

    line: Mapping[str, Any]
    photo: Photo | None


def draw_examples(lines: Sequence[Mapping[str, Any]], options: BoostOptions) -> list[Example]:
    """Fifty random images, with their photos where a source of photos is given; a bad photo is left out.

    Raises:
        DataError: the source of photos cannot be read.
    """
    chosen = random.Random(options.seed).sample(range(len(lines)), min(EXAMPLES, len(lines)))
    source = ImageSource(options.images) if options.images is not None else None
    return [Example(lines[index], _photo(str(lines[index]["image"]), source)) for index in sorted(chosen)]


def _photo(name: str, source: ImageSource | None) -> Photo | None:
    if source is None:
        return None
    try:
        return photo_of(name, load_image(source.read(name)), longest_px=400)
    except ImageError:
        return None


def boost_page(report: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """A whole HTML document.

    Args:
        report: as `boost` returns it.
        examples: images to show.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    tiles = "".join(
        f'<div class="tile"><b>{value}</b>{title}</div>'
        for value, title in (
            (f"{report['content_gain']:+.0%}", "content words per caption"),
            (f"{report['word_support']:.2%}", "of words stated by a human caption"),
            (f"{report['written']}", f"of {report['images']} images boosted"),
            (f"{report['near_duplicates']:.1%}", "captions nearly like another one"),
        )
    )
    before, after = report["human"], report["boosted"]
    rows = "".join(
        f'<tr><th scope="row">{title}</th><td>{before[key]:g}</td><td>{after[key]:g}</td></tr>'
        for key, title in _ROWS
    )
    if "similarity" in report:
        cosines = report["similarity"]
        rows += (
            f'<tr><th scope="row">similarity with the photo</th><td>{cosines["human"]:.4f}</td>'
            f"<td>{cosines['boosted']:.4f}</td></tr>"
        )
    counts = "".join(
        _counts(report.get(key, {}), title)
        for key, title in (
            ("generators", "images by writer"), ("rejected", "captions rejected, by rule"),
            ("captions_refused", "human captions refused, by reason"), ("images_dropped", "images dropped"),
            ("added_by_experts", "added by vision experts"), ("endpoint", "requests to the endpoint"),
            ("local", "requests to the local model"),
        )
    )  # fmt: skip
    shown = "\n".join(map(_card, examples))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>Boosted captions</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Boosted captions</h1>
<p class="soft">What people wrote about an image, merged into one caption and checked against it.
Written by: {escape(str(report["generator"]))}.</p>
<div class="tiles">{tiles}</div>
<div class="tables">
<table><caption>human captions and boosted ones</caption>
<thead><tr><th></th><th scope="col">before</th><th scope="col">after</th></tr></thead>
<tbody>{rows}</tbody></table>
{counts}</div>
<h2>{len(examples)} random examples</h2>
<p class="soft small">Bold: the boosted caption; coloured: words that the caption it grew from did
not have. Below: the human captions, and what only a vision expert saw.</p>
<div class="examples">
{shown}
</div>
</body>
</html>
"""


def _counts(counts: Mapping[str, Any], title: str) -> str:
    if not counts:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(str(value))}</td></tr>'
        for key, value in counts.items()
    )
    return f"<table><caption>{title}</caption><tbody>{rows}</tbody></table>\n"


def _card(example: Example) -> str:
    line = example.line
    boost = line.get("boost", {})
    parts = []
    for index, caption in enumerate(line["captions"]):
        grafts = boost.get("grafts", [])
        parts.append(f"<strong>{_marked(caption, grafts[index] if index < len(grafts) else ())}</strong>")
    humans = "".join(f"<li>{escape(text)}</li>" for text in line.get("human_captions", ()))
    photo = example.photo
    picture = (
        f'<img src="{escape(photo.data_uri)}" alt="{escape(line["captions"][0])}">'
        if photo is not None
        else ""
    )
    note = " · fallback" if boost.get("fallback") else ""
    for seen in boost.get("seen", ()):
        note += "".join(f" · seen ({escape(one['by'])}): {escape(one['words'])}" for one in seen)
    return (
        f"<figure>{picture}<figcaption>{''.join(parts)}<ul>{humans}</ul>"
        f'<p class="small soft">{escape(str(line["image"]))}{note}</p></figcaption></figure>'
    )


def _marked(caption: str, grafts: Sequence[str]) -> str:
    text = escape(caption)
    for graft in sorted(set(grafts), key=len, reverse=True):
        word = escape(graft)
        if f"<mark>{word}" not in text:
            text = text.replace(word, f"<mark>{word}</mark>", 1)
    return text
