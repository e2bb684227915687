"""The page of a bag: whole, self-contained, and deaf to what a file name or a caption would like to say."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tellapart.errors import ShapeError
from tellapart.pages import Photo, bag_page, photo_of
from tellapart.types import BagResult, Caption

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Checks that tags close in order, and keeps what a test asks for."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture
def result() -> BagResult:
    """Two captions; the second picks the wrong picture."""
    return BagResult(
        captions=(
            Caption(text="A dog", token_ids=(5, 6), mean_logprob=-0.5),
            Caption(text='A <b>cat</b> & "co"', token_ids=(5, 7), mean_logprob=-0.6),
        ),
        ranks=(1, 2),
        margins=(0.25, -0.125),
        similarity=np.array([[0.5, 0.25], [0.375, 0.25]], np.float32),
        recall_at_1=0.5,
    )


@pytest.fixture
def photos() -> list[Photo]:
    pixels = np.zeros((900, 1200, 3), np.uint8)
    return [photo_of("dog.jpg", pixels), photo_of('"><script>alert(1)</script>.jpg', pixels)]


def test_a_photo_travels_small_inside_the_page(photos: list[Photo]) -> None:
    kind, _, data = photos[0].data_uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (480, 360))


def test_the_page_shows_every_caption_rank_and_similarity(result: BagResult, photos: list[Photo]) -> None:
    reader = read(bag_page(result, photos, mode="rerank", model="tiny, abc123"))
    text = " ".join(" ".join(reader.text).split())
    assert "1 of 2 captions pick out their own picture: recall@1 0.50, by chance 0.50." in text
    for words in (
        "A dog",
        "rank 1 of 2",
        "rank 2 of 2",
        "+0.250",
        "-0.125",
        "0.375",
        "rerank",
        "tiny, abc123",
    ):
        assert words in text
    cells = [attributes for tag, attributes in reader.tags if tag == "td"]
    assert [cell["class"] for cell in cells] == ["diagonal best", "", "best", "diagonal"]
    # Heat runs from the lowest similarity, 0.25, to the highest, 0.5.
    assert [cell["style"] for cell in cells] == [
        "--heat: " + heat for heat in ("1.000", "0.000", "0.500", "0.000")
    ]


def test_the_page_says_whose_ranks_these_are(result: BagResult, photos: list[Photo]) -> None:
    said = {mode: bag_page(result, photos, mode=mode, model="m") for mode in ("plain", "rerank", "contrast")}
    assert [mode for mode, page in said.items() if "had a say" in page] == [
        "rerank",
        "contrast",
    ]


def test_names_and_captions_are_shown_and_never_obeyed(result: BagResult, photos: list[Photo]) -> None:
    reader = read(bag_page(result, photos, mode="plain", model="<i>m</i>"))
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "b", "i"})
    text = " ".join(reader.text)
    assert 'A <b>cat</b> & "co"' in text
    assert '"><script>alert(1)</script>.jpg' in text
    alts = [attributes["alt"] for tag, attributes in reader.tags if tag == "img"]
    assert 'A <b>cat</b> & "co"' in alts


def test_the_page_loads_nothing(result: BagResult, photos: list[Photo]) -> None:
    page = bag_page(result, photos, mode="plain", model="m")
    reader = read(page)
    assert all(
        (attributes["src"] or "").startswith("data:image/jpeg;base64,")
        for tag, attributes in reader.tags
        if tag == "img"
    )
    assert {tag for tag, _ in reader.tags}.isdisjoint({"link", "iframe", "object", "form", "a"})
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")


def test_equal_similarities_are_drawn_all_the_same(photos: list[Photo]) -> None:
    caption = Caption(text="A wall", token_ids=(5,), mean_logprob=-1.0)
    flat = BagResult(
        captions=(caption, caption),
        ranks=(2, 2),
        margins=(0.0, 0.0),
        similarity=np.full((2, 2), 0.3, np.float32),
        recall_at_1=0.0,
    )
    assert bag_page(flat, photos, mode="plain", model="m").count("--heat: 0.000") == 4


def test_wrong_shapes_are_refused(result: BagResult, photos: list[Photo]) -> None:
    with pytest.raises(ShapeError, match="a photo for each of 2 captions, got 1"):
        bag_page(result, photos[:1], mode="plain", model="m")
    with pytest.raises(ShapeError, match=r"\(h, w, 3\) uint8"):
        photo_of("x", np.zeros((4, 4), np.uint8))
