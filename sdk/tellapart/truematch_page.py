"""The HTML of a TrueMatch run: figures, plots, and bags as rows of photos, in one file that loads nothing.

As in `pages`: photos travel inside as small JPEGs, there are no scripts, a content policy forbids everything
else, and whatever comes from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from tellapart.errors import ShapeError
from tellapart.pages import Photo
from tellapart.similarity import RealArray, TieRule, margins
from tellapart.truematch import BagScores
from tellapart.truematch_charts import RecallBar, hits_chart, margin_chart, recall_chart

__all__ = ["ShownBag", "choose_bags", "truematch_page"]

_SHARE_OF_MISSES = 0.75
"""Of the bags on a page at most this share has a miss, while there are others: a page of misses alone would
tell another story than the figures above it."""

_STYLE = """
:root { --page: #f6f6f3; --card: #ffffff; --ink: #1d1f21; --soft: #62676d; --line: #dcddd8;
  --accent: #1c6e8c; --good: #1f7a45; --bad: #b3402e; --even: #8a6d1a; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #16181a; --card: #1f2225; --ink: #eceeee;
  --soft: #a2a8ad; --line: #363b40; --accent: #4fb0d2; --good: #63c48b; --bad: #f08a76; --even: #d9b95c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2.5rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; letter-spacing: -0.015em; line-height: 1.2; }
h2 { margin: 3rem 0 .5rem; font-size: 1.35rem; } h3 { margin: 0 0 .4rem; font-size: .9rem; font-weight: 600; }
p { margin: .4rem 0; max-width: 46rem; } .soft { color: var(--soft); } .small { font-size: .85rem; }
.note { border-left: 4px solid var(--even); padding: .5rem .9rem; margin: .7rem 0; background: var(--card);
  border-radius: 0 .4rem .4rem 0; }
.tiles { display: grid; gap: 1rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(13rem, 100%), 1fr)); }
.tile, .plot { background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: 1rem 1.2rem; }
.tile b { display: block; font-size: 2.3rem; line-height: 1.15; letter-spacing: -0.03em; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.wide svg { max-width: 46rem; width: 100%; } .wide .scroll { margin: .6rem -1.2rem 0; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); }
.plots svg { width: 100%; max-width: 26rem; }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(33rem, 100%), 1fr)); }
svg { display: block; height: auto; } svg text { font-size: 13px; fill: var(--ink); }
svg text.soft { fill: var(--soft); } svg text.figure { font-weight: 650; }
rect.own { fill: var(--good); } rect.other { fill: var(--bad); }
.wide rect.own { fill: var(--accent); opacity: .8; }
.axis { stroke: var(--line); } .whisker { stroke: var(--ink); stroke-width: 1.8; fill: none; }
.chance { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 4 3; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
.bag { margin: 1rem 0 1.6rem; } .bag > p { margin: 0 0 .35rem; }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(9.5rem, 22rem); gap: .7rem;
  overflow-x: auto; padding-bottom: .3rem; }
figure { margin: 0; display: flex; flex-direction: column; background: var(--card);
  border: 1px solid var(--line); border-top: 5px solid var(--kind); border-radius: .5rem; overflow: hidden; }
figure > img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--page); }
figcaption { padding: .6rem .75rem .75rem; display: flex; flex-direction: column; flex: 1; gap: .35rem; }
figcaption strong { font-weight: 600; font-size: .95rem; line-height: 1.35; overflow-wrap: anywhere; }
.verdict { margin: auto 0 0; color: var(--kind); font-size: .85rem; font-weight: 600; }
.verdict img { display: block; width: 5.2rem; margin-top: .3rem; border-radius: .25rem;
  border: 2px solid var(--kind); }
.own { --kind: var(--good); } .other { --kind: var(--bad); } .even { --kind: var(--even); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { text-align: right; padding: .35rem .55rem; white-space: nowrap; font-weight: 400;
  border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: 1.2rem; } thead th { color: var(--soft); }
.scroll { overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownBag:
    """A bag with all that its row needs; k photos."""

    number: int
    """Its place in the benchmark's file, from 1."""

    captions: tuple[str, ...]
    similarity: RealArray
    """(k, k) float64, row = caption, column = image."""

    photos: tuple[Photo, ...]
    thumbnails: tuple[Photo, ...]
    """The same photos once more and smaller, for "found this one instead"."""


def choose_bags(scores: BagScores, limit: int) -> list[int]:
    """Which bags a page shows, in the order of the page: those with a miss first, most misses first.

    Args:
        scores: of all bags of a size.
        limit: how many at most, from 1.

    Returns:
        Indices of bags. Where not all fit, a quarter of the places goes to bags without a miss, as far as
        there are any, so that the page does not look worse than the model.
    """
    misses = (scores.hits() < 1.0).sum(axis=1)
    order = np.argsort(-misses, kind="stable")
    missed = [int(index) for index in order if misses[index]]
    right = [int(index) for index in order if not misses[index]]
    places = limit - min(len(right), max(limit - len(missed), limit - round(limit * _SHARE_OF_MISSES)))
    return missed[:places] + right[: limit - min(places, len(missed))]


def truematch_page(
    record: Mapping[str, Any], scores: Mapping[int, BagScores], shown: Mapping[int, Sequence[ShownBag]]
) -> str:
    """A page that shows how well captions tell look-alikes apart.

    Args:
        record: what `tellapart truematch run --json` prints: figures, model, scorer, device, notes.
        scores: by bag size; the same sizes as in the record.
        shown: by bag size, the bags to be seen, as `choose_bags` orders them.

    Returns:
        A whole HTML document.

    Raises:
        ShapeError: a bag without a photo, a thumbnail or a caption for each of its images.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    title = escape(record["benchmark"]["name"])
    notes = "\n".join(f'<p class="note">{escape(note)}</p>' for note in record["notes"])
    sections = "\n".join(_section(found, shown.get(size, ())) for size, found in scores.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>Telling look-alikes apart: {title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Do the captions tell look-alikes apart?</h1>
<p class="soft">{title}. Every photo was captioned alone. A scorer then reads the caption and picks one photo
of a bag of look-alikes: a hit if it is the photo that the caption was made for.</p>
{notes}
<div class="tiles">
{_tiles(record)}
</div>
<div class="pair">
<div class="plot wide">
<h3>Captions that find their own photo</h3>
{recall_chart(_bars(record))}
<p class="soft small">Whiskers: 95 % bootstrap interval. Dashed: chance. A circle, where ties matter: the
optimistic rule of the published protocol.</p>
</div>
<div class="plot wide">
<h3>In numbers</h3>
{_table(record)}
</div>
</div>
{sections}
<h2>How it was measured</h2>
{_facts(record)}
</body>
</html>
"""


def _tiles(record: Mapping[str, Any]) -> str:
    tiles = [
        f'<div class="tile"><b>{100 * found["recall_at_1"]:.1f} %</b>find their own photo among {size} '
        f'look-alikes<br><span class="soft small">by chance {100 * found["chance"]:.0f} %</span></div>'
        for size, found in record["bags"].items()
    ]
    if record["rd100"] is not None:
        found = record["rd100"]
        tiles.append(
            f'<div class="tile"><b>{100 * found["recall_at_1"]:.1f} %</b>find it among 100 random photos<br>'
            f'<span class="soft small">by chance {100 * found["chance"]:.0f} %</span></div>'
        )
    if record["latency_ms"] is not None:
        latency = record["latency_ms"]
        tiles.append(
            f'<div class="tile"><b>{latency["p50"]:.0f} ms</b>per caption, in the median<br>'
            f'<span class="soft small">19 of 20 within {latency["p95"]:.0f} ms</span></div>'
        )
    return "\n".join(tiles)


def _lines(record: Mapping[str, Any]) -> list[tuple[str, int, Mapping[str, Any]]]:
    """Label, number of bags or groups, and figures, for each line of plot and table."""
    lines = [(f"bags of {size}", found["bags"], found) for size, found in record["bags"].items()]
    if record["rd100"] is not None:
        lines.append(("RD100", record["rd100"]["groups"], record["rd100"]))
    return lines


def _bars(record: Mapping[str, Any]) -> list[RecallBar]:
    return [
        RecallBar(
            label,
            found["recall_at_1"],
            found["ci95"][0],
            found["ci95"][1],
            found["chance"],
            found["recall_at_1_optimistic"],
        )
        for label, _, found in _lines(record)
    ]


def _table(record: Mapping[str, Any]) -> str:
    rules = ("strict", "expected", "optimistic")
    heads = ("", "bags", "photos", *rules, "95 % interval", "chance")
    rows = []
    for label, count, found in _lines(record):
        low, high = (100 * end for end in found["ci95"])
        shares = [f"{100 * found[f'recall_at_1_{rule}']:.1f} %" for rule in rules]
        shares[rules.index(record["ties"])] = f"<b>{100 * found['recall_at_1']:.1f} %</b>"
        cells = [str(count), str(found["images"]), *shares, f"{low:.1f} to {high:.1f}"]
        cells.append(f"{100 * found['chance']:.1f} %")
        rows.append(
            f'<tr><th scope="row">{label}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
        '<p class="soft small">Recall@1 by how ties count; bold, and with the interval: '
        f"{escape(record['ties'])}. Strict: an equally close photo is a miss. Expected: by its chance. "
        "Optimistic: a hit, as published.</p>"
    )


def _section(scores: BagScores, shown: Sequence[ShownBag]) -> str:
    """Plots and bags of one size."""
    hits = scores.hits()
    whole = int((hits >= 1.0).all(axis=1).sum())
    every = np.concatenate([margins(bag) for bag in scores.similarity])
    groups: list[str] = []
    missed = [bag for bag in shown if _has_miss(bag, scores.ties)]
    right = [bag for bag in shown if not _has_miss(bag, scores.ties)]
    for bags, total, name, state in (
        (missed, len(hits) - whole, "Bags with a miss", " open"),
        (right, whole, "Bags in which every caption is right", "" if missed else " open"),
    ):
        if bags:
            rest = total - len(bags)
            told = f"{len(bags)} of {total} shown, {rest} left out" if rest else f"all {total} shown"
            rows = "\n".join(_bag(bag, scores.ties) for bag in bags)
            groups.append(f"<details{state}><summary>{name} ({told})</summary>\n{rows}\n</details>")
    listed = "\n".join(groups)
    counted = "1 bag" if len(hits) == 1 else f"{len(hits)} bags"
    return f"""<h2>Bags of {scores.size}</h2>
<p class="soft">{counted}; in {whole} of them every caption finds its own photo.</p>
<div class="plots">
<div class="plot"><h3>Bags by number of captions right</h3>
{hits_chart(hits)}</div>
<div class="plot"><h3>How far the own photo is ahead (cosine)</h3>
{margin_chart(every)}</div>
</div>
{listed}"""


def _bag(bag: ShownBag, ties: TieRule) -> str:
    size = len(bag.similarity)
    if not len(bag.photos) == len(bag.thumbnails) == len(bag.captions) == size:
        raise ShapeError(
            f"bag {bag.number} needs a photo, a thumbnail and a caption for each of {size} images"
        )
    cards = "\n".join(_card(bag, index, ties) for index in range(size))
    return (
        f'<div class="bag"><p class="soft small">Bag {bag.number}</p><div class="row">\n{cards}\n</div></div>'
    )


def _card(bag: ShownBag, index: int, ties: TieRule) -> str:
    lead, rival = _lead(bag.similarity, index)
    text, name = escape(bag.captions[index]), escape(bag.photos[index].name)
    twins = sum(other == bag.captions[index] for other in bag.captions) - 1
    same = f'<span class="soft small">same words as {twins} more in this bag</span>' if twins else ""
    if lead > 0:
        kind, verdict = "own", f"✓ finds its own photo, {lead:+.3f}"
    else:
        kind = {"strict": "other", "expected": "even", "optimistic": "own"}[ties] if lead == 0 else "other"
        said = "= as close to this one" if lead == 0 else f"✗ finds this one, {lead:+.3f}"
        thumbnail = bag.thumbnails[rival]
        verdict = f'{said}<img src="{escape(thumbnail.data_uri)}" alt="{escape(thumbnail.name)}">'
    return (
        f'<figure class="{kind}" title="{name}"><img src="{escape(bag.photos[index].data_uri)}" alt="{name}">'
        f'<figcaption><strong>{text}</strong>{same}<p class="verdict">{verdict}</p></figcaption></figure>'
    )


def _lead(similarity: RealArray, index: int) -> tuple[float, int]:
    """Own cosine less the best other one, and whose that is."""
    others = similarity[index].copy()
    others[index] = -np.inf
    rival = int(others.argmax())
    return float(similarity[index, index] - others[rival]), rival


def _has_miss(bag: ShownBag, ties: TieRule) -> bool:
    leads = margins(bag.similarity)
    return bool((leads < 0).any() if ties == "optimistic" else (leads <= 0).any())


def _facts(record: Mapping[str, Any]) -> str:
    model, scorer, device = record["model"], record["scorer"], record["device"]
    captions = record["captions"]
    rows = [
        ("Benchmark", f"{record['benchmark']['name']}, {record['benchmark']['sha256']}"),
        ("Captions by", f"{model.get('name', model.get('captions'))}, {model['sha256']}"),
        ("Scorer", f"{scorer['name']}, {scorer['sha256']}"),
        ("Captions", f"{captions['distinct']} different ones of {captions['images']} photos"),
    ]
    if record["latency_ms"] is not None:
        latency = record["latency_ms"]
        rows.append(("Time per caption", f"{latency['p50']:.1f} ms (median), {latency['p95']:.1f} ms (95th)"))
    if record["peak_rss_mib"] is not None:
        rows.append(("Peak memory", f"{record['peak_rss_mib']:.0f} MiB"))
    rows.append(("Device", f"{device['cpu']}, {device['cores']} cores, {device['system']}"))
    if record["rd100"] is not None:
        rows.append(("RD100", f"groups of 100 photos, {record['rd100']['permutation']}"))
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(str(text))}</dd>" for name, text in rows) + "</dl>"
