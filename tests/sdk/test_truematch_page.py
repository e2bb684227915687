"""The page of a TrueMatch run: whole, loads nothing, and says of every caption what the figures say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from tellapart.errors import ShapeError
from tellapart.pages import Photo
from tellapart.truematch import BagScores, score_size
from tellapart.truematch_charts import RecallBar, hits_chart, margin_chart, recall_chart
from tellapart.truematch_page import ShownBag, choose_bags, truematch_page

PIXEL = "data:image/jpeg;base64,AAAA"


class Reader(HTMLParser):
    """Checks that tags close in order; keeps tags and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        found = [attrs for name, attrs in self.tags if name == tag]
        return [attrs for attrs in found if kind is None or kind in (attrs.get("class") or "").split()]


def scored(ties="strict") -> BagScores:
    """Three bags of 2: both right; the second misses; the first ties, as it is like both images."""
    images = np.eye(6, dtype=np.float32)
    captions = images.copy()
    captions[3] = images[2]
    captions[4] = (images[4] + images[5]) / np.sqrt(np.float32(2))
    return score_size(captions, images, np.array([[0, 1], [2, 3], [4, 5]]), ties=ties)


def shown(scores: BagScores, bag: int, captions: tuple[str, ...] = ("A dog", "A cat")) -> ShownBag:
    photos = tuple(Photo(f"photo-{2 * bag + place}.jpg", PIXEL) for place in range(2))
    thumbnails = tuple(Photo(f"small-{2 * bag + place}.jpg", PIXEL) for place in range(2))
    return ShownBag(
        number=bag + 1, captions=captions, similarity=scores.similarity[bag], photos=photos,
        thumbnails=thumbnails,
    )  # fmt: skip


def record(scores: BagScores, **changes: Any) -> dict[str, Any]:
    return {
        "benchmark": {"name": "Toys & <co>", "folder": "bench", "sha256": "b" * 64},
        "bags": {"2": scores.to_record()},
        "rd100": None,
        "ties": scores.ties,
        "model": {"name": "tiny", "sha256": "m" * 64},
        "scorer": {"name": "judge", "sha256": "s" * 64, "is_own": False},
        "captions": {"images": 6, "distinct": 5, "truncated": 0},
        "latency_ms": {"p50": 12.345, "p95": 67.8},
        "peak_rss_mib": 138.4,
        "device": {"system": "Linux", "cpu": "A chip", "cores": 2},
        "notes": ["Only <b>some</b> bags."],
        **changes,
    }


def page_of(ties="strict", **changes: Any) -> Reader:
    scores = scored(ties)
    return Reader(
        truematch_page(
            record(scores, **changes),
            {2: scores},
            {2: [shown(scores, 0), shown(scores, 1), shown(scores, 2)]},
        )
    )


def test_the_page_is_whole_and_loads_nothing():
    page = page_of()
    assert page.tags[0][0] == "html"
    assert not page.all("script")
    assert not page.all("link")
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert {image["src"] for image in page.all("img")} == {PIXEL}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "action")]


def test_what_comes_from_outside_is_text_and_nothing_else():
    scores, sly = scored(), '"><script>alert(1)</script>'
    bag = shown(scores, 1, (sly, "x"))
    bag = ShownBag(
        number=1, captions=bag.captions, similarity=bag.similarity, photos=(Photo(sly, PIXEL), bag.photos[1]),
        thumbnails=(Photo(sly, PIXEL), bag.thumbnails[1]),
    )  # fmt: skip
    given = record(
        scores, notes=[sly], model={"captions": sly, "sha256": "0"}, captions={"images": 6, "distinct": sly}
    )
    page = Reader(truematch_page(given, {2: scores}, {2: [bag]}))
    assert not page.all("script")
    assert page.text.count(sly) == 4  # caption, note, model, count
    assert sly in [figure["title"] for figure in page.all("figure")]
    assert "Toys & <co>" in page.text


@pytest.mark.parametrize(
    ("ties", "kinds", "recall"),
    [
        ("strict", ["own", "other", "other", "own", "own", "own"], "66.7 %"),
        ("expected", ["own", "other", "even", "own", "own", "own"], "75.0 %"),
        ("optimistic", ["own", "other", "own", "own", "own", "own"], "83.3 %"),
    ],
)
def test_every_card_is_coloured_by_the_rule_of_the_run(ties, kinds, recall):
    page = page_of(ties)
    assert [figure["class"] for figure in page.all("figure")] == kinds
    assert f"{recall}find their own photo among 2 look-alikes" in page.text
    assert page.text.count("✗ finds this one, -1.000") == 1
    assert page.text.count("= as close to this one") == 1
    # Bags with a miss come first. The photo found instead: of the miss its bag's first, of the tie the other.
    small = [image["alt"] for image in page.all("img") if (image["alt"] or "").startswith("small")]
    assert small == ["small-2.jpg", "small-5.jpg"]


def test_bags_with_a_miss_stand_apart_and_are_counted():
    page = page_of()
    assert "Bags with a miss (all 2 shown)" in page.text
    assert "Bags in which every caption is right (all 1 shown)" in page.text
    assert "3 bags; in 1 of them every caption finds its own photo" in page.text
    first, second = page.all("details")
    assert "open" in first
    assert "open" not in second
    scores = scored()
    less = Reader(truematch_page(record(scores), {2: scores}, {2: [shown(scores, 1)]}))
    assert "Bags with a miss (1 of 2 shown, 1 left out)" in less.text
    assert len(less.all("details")) == 1
    assert "Bags with a miss (all 1 shown)" in page_of("optimistic").text


def test_equal_words_are_pointed_at():
    scores = scored()
    page = Reader(truematch_page(record(scores), {2: scores}, {2: [shown(scores, 1, ("Same", "Same"))]}))
    assert page.text.count("same words as 1 more in this bag") == 2
    assert "same words" not in page_of().text


def test_figures_that_were_not_measured_are_not_shown():
    full = page_of()
    assert "12 ms" in full.text
    assert "Time per caption12.3 ms (median), 67.8 ms (95th)" in full.text
    assert "Peak memory138 MiB" in full.text
    less = page_of(latency_ms=None, peak_rss_mib=None)
    assert "Time per caption" not in less.text
    assert "per caption, in the median" not in less.text
    assert "Peak memory" not in less.text
    among = {**scored().to_record(), "groups": 7, "permutation": "stored with the benchmark"}
    more = page_of(rd100=among)
    assert "find it among 100 random photos" in more.text
    assert "groups of 100 photos, stored with the benchmark" in more.text


def test_a_bag_without_all_of_its_parts_is_refused():
    scores = scored()
    bag = shown(scores, 0)
    for changes in ({"photos": bag.photos[:1]}, {"thumbnails": ()}, {"captions": ("one",)}):
        parts = {"captions": bag.captions, "photos": bag.photos, "thumbnails": bag.thumbnails, **changes}
        broken = ShownBag(number=1, similarity=bag.similarity, **parts)
        with pytest.raises(ShapeError, match="bag 1 needs a photo, a thumbnail and a caption"):
            truematch_page(record(scores), {2: scores}, {2: [broken]})


def test_misses_come_first_and_leave_a_quarter_to_the_others():
    images = np.eye(30, dtype=np.float32)
    captions, bags = images.copy(), np.arange(30).reshape(10, 3)
    for bag in range(6):  # bags 0 to 5 miss: one caption, bag 4 two
        captions[3 * bag] = images[3 * bag + 1]
    captions[13] = images[12]
    scores = score_size(captions, images, bags)
    assert choose_bags(scores, 20) == [4, 0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert choose_bags(scores, 4) == [4, 0, 1, 6]
    assert choose_bags(scores, 8) == [4, 0, 1, 2, 3, 5, 6, 7]
    assert choose_bags(scores, 1) == [4]
    perfect = score_size(images, images, bags)
    assert choose_bags(perfect, 3) == [0, 1, 2]
    none = score_size(np.roll(images, 1, axis=0), images, bags)
    assert choose_bags(none, 3) == [0, 1, 2]


def numbers(chart: str, pattern: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, found.groups())) for found in re.finditer(pattern, chart)]


def test_bars_are_drawn_to_scale():
    bars = [RecallBar("of 3", 0.5, 0.25, 0.75, 1 / 3, 0.5), RecallBar("of <5>", 0.2, 0.2, 0.2, 0.2, 1.0)]
    chart = recall_chart(bars)
    Reader(chart)
    ticks = numbers(chart, r'class="axis" x1="([\d.]+)"')
    zero, whole = ticks[0][0], ticks[-1][0]
    shares = [(width,) for (width,) in numbers(chart, r'class="own" x="[\d.]+" y="[\d.]+" width="([\d.]+)"')]
    assert [width / (whole - zero) for (width,) in shares] == pytest.approx([0.5, 0.2])
    low, high = numbers(chart, r'class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)M')[0]
    assert ((low - zero) / (whole - zero), (high - zero) / (whole - zero)) == pytest.approx((0.25, 0.75))
    chances = numbers(chart, r'class="chance" x1="([\d.]+)"')
    assert [(x - zero) / (whole - zero) for (x,) in chances] == pytest.approx([1 / 3, 0.2], abs=1e-3)
    # Only where ties make a difference.
    assert numbers(chart, r'<circle class="whisker" cx="([\d.]+)"') == [(whole,)]
    assert "of &lt;5&gt;" in chart
    assert 'aria-label="Recall at 1: of 3 50.0 %, 95 % interval 25.0 to 75.0, chance 33.3;' in chart


def test_columns_count_bags_and_margins():
    chart = hits_chart(np.array([[1, 1, 1], [1, 0.5, 1], [0, 0, 0], [1, 1, 1]]))
    Reader(chart)
    # A half hit is no hit: one bag with none, none with one, one with two, two with all.
    assert "Of 4 bags by captions right: 1 with 0, 0 with 1, 1 with 2, 2 with 3" in chart
    heights = [height for (height,) in numbers(chart, r'<rect class="\w+" [^>]*height="([\d.]+)"')]
    assert heights == pytest.approx([60, 0, 60, 120])
    assert re.findall(r'<rect class="(\w+)"', chart) == ["other", "other", "other", "own"]


def test_a_tie_stands_with_the_misses():
    chart = margin_chart(np.array([0.0, 0.4, -0.4, 0.39]))
    Reader(chart)
    kinds = re.findall(r'<rect class="(\w+)" [^>]*height="([\d.]+)"', chart)
    tall = [(kind, float(height)) for kind, height in kinds if float(height)]
    assert tall == [("other", 60.0), ("other", 60.0), ("own", 120.0)]
    assert "Margins from -0.400 to 0.400, 2 above 0" in chart
    Reader(margin_chart(np.zeros(5)))  # nothing but ties
