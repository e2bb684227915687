"""The HTML of a bag: one file that holds photos, captions and the proof, and loads nothing.

Photos travel inside as small JPEGs, styles inside as text, scripts there are none; a content policy in the
page forbids everything else. Whatever comes from outside, such as file names and captions, is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tellapart.errors import MissingExtraError, ShapeError
from tellapart.types import BagResult, PixelArray

__all__ = ["Photo", "bag_page", "photo_of"]

_THUMBNAIL_PX = 480
_JPEG_QUALITY = 82

_STYLE = """
:root { --page: #f6f6f3; --card: #ffffff; --ink: #1d1f21; --soft: #62676d; --line: #dcddd8;
  --accent: #1c6e8c; --good: #1f7a45; --bad: #b3402e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #16181a; --card: #1f2225; --ink: #eceeee;
  --soft: #a2a8ad; --line: #363b40; --accent: #4fb0d2; --good: #63c48b; --bad: #f08a76; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2.5rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; letter-spacing: -0.01em; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.1rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); } .small { font-size: .85rem; }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); }
figure { margin: 0; display: flex; flex-direction: column; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
figure img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--page); }
figcaption { padding: .8rem 1rem 1rem; } figcaption strong { display: block; font-weight: 600; }
.rank { display: inline-block; padding: .05rem .5rem; border-radius: 1rem; border: 1px solid currentColor;
  font-size: .8rem; font-weight: 600; }
.own { color: var(--good); } .other { color: var(--bad); }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
table { border-collapse: separate; border-spacing: 3px; padding: .6rem; font-variant-numeric: tabular-nums; }
th { font-weight: 400; text-align: left; padding: .2rem .6rem; min-width: 4.5rem; }
thead th { vertical-align: bottom; text-align: center; } thead img { width: 4rem; border-radius: .25rem; }
tbody th { max-width: 24rem; }
td { text-align: center; padding: .45rem .6rem; border-radius: .25rem; border: 2px solid transparent;
  background: color-mix(in srgb, var(--accent) calc(var(--heat) * 62%), var(--card)); }
td.diagonal { border-color: var(--ink); } td.best { font-weight: 700; }
"""


_CHOSEN = """ The retriever had a say in these captions, so its ranks are what was optimised, not an
independent score."""


@dataclass(frozen=True)
class Photo:
    """A picture as a page shows it."""

    name: str
    """What it is called, as a file name; escaped where it is shown."""

    data_uri: str
    """The picture itself, as `data:image/jpeg;base64,...`."""


def photo_of(name: str, rgb: PixelArray, *, longest_px: int = _THUMBNAIL_PX) -> Photo:
    """A photo small enough for a page.

    Args:
        name: what it is called.
        rgb: (h, w, 3) uint8, upright, as `load_image` gives it; left as it is.
        longest_px: longer side at most; a smaller picture keeps its size.

    Raises:
        MissingExtraError: Pillow is not installed.
        ShapeError: not (h, w, 3) uint8.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("cpu", "A page with photos needs Pillow, which is not installed") from error
    if rgb.dtype != "uint8" or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ShapeError(f"expected an image as (h, w, 3) uint8, got {rgb.shape} {rgb.dtype}")
    picture = Image.fromarray(rgb)
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=_JPEG_QUALITY)
    return Photo(name, "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii"))


def bag_page(result: BagResult, photos: Sequence[Photo], *, mode: str, model: str) -> str:
    """A page that shows a bag: photos with captions and ranks, then every similarity.

    Args:
        result: captions, ranks and similarity of k images.
        photos: the k images in the same order.
        mode: how the captions were made.
        model: name and hash of the bundle, for the foot.

    Returns:
        A whole HTML document.

    Raises:
        ShapeError: not as many photos as captions.
    """
    if len(photos) != len(result.captions):
        raise ShapeError(f"expected a photo for each of {len(result.captions)} captions, got {len(photos)}")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    size = len(photos)
    found = sum(rank == 1 for rank in result.ranks)
    chosen = "" if mode == "plain" else _CHOSEN
    cards = "\n".join(_card(result, photos[index], index) for index in range(size))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>A bag of {size} pictures</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>A bag of {size} pictures</h1>
<p>{found} of {size} captions pick out their own picture: recall@1 {result.recall_at_1:.2f}, by chance \
{1 / size:.2f}.</p>
<p class="soft small">Mode {escape(mode)}. The rank is the place of the own picture when the retriever sorts
the bag by closeness to the caption, so 1 is best; the margin is how far the own picture is ahead of the best
other one.{chosen}</p>
<h2>Pictures and captions</h2>
<div class="cards">
{cards}
</div>
<h2>How close every caption is to every picture</h2>
{_heat_table(result, photos)}
<p class="soft small">Cosine of caption and picture. Framed: the own picture. Bold: the closest one.</p>
<p class="soft small">Model {escape(model)}.</p>
</body>
</html>
"""


def _card(result: BagResult, photo: Photo, index: int) -> str:
    rank, margin = result.ranks[index], result.margins[index]
    kind = "own" if rank == 1 else "other"
    name, text = escape(photo.name), escape(result.captions[index].text)
    return (
        f'<figure><img src="{escape(photo.data_uri)}" alt="{text}"><figcaption><strong>{text}</strong>'
        f'<p class="small soft">{name}</p><p class="small"><span class="rank {kind}">rank {rank} of '
        f"{len(result.ranks)}</span> margin {margin:+.3f}</p></figcaption></figure>"
    )


def _heat_table(result: BagResult, photos: Sequence[Photo]) -> str:
    similarity = result.similarity
    low, high = float(similarity.min()), float(similarity.max())
    spread = (high - low) or 1.0
    heads = "".join(
        f'<th scope="col"><img src="{escape(photo.data_uri)}" alt="{escape(photo.name)}"></th>'
        for photo in photos
    )
    rows = []
    for row, caption in enumerate(result.captions):
        best = int(similarity[row].argmax())
        cells = []
        for column in range(len(photos)):
            value = float(similarity[row, column])
            marks = [mark for mark, is_so in (("diagonal", row == column), ("best", column == best)) if is_so]
            heat = (value - low) / spread
            cells.append(f'<td class="{" ".join(marks)}" style="--heat: {heat:.3f}">{value:.3f}</td>')
        rows.append(f'<tr><th scope="row">{escape(caption.text)}</th>{"".join(cells)}</tr>')
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr><th></th>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )
