"""What `tellapart boost` tells of a run: the rule that looks at photos, the page, the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from faulty_endpoint import write_captions
from tellapart.cli import main
from tellapart.retriever import Retriever
from tellapart_training.boost import runner
from tellapart_training.boost.similarity import Gauge
from tellapart_training.images import ImageSource

if TYPE_CHECKING:
    from tellapart_training.boost.parsing import SpacyParser

pytestmark = pytest.mark.train


class Eyes:
    """A retriever for which a text is the nearer the more of its words are "dog"."""

    def embed_images(self, images: Any) -> Any:
        return np.tile(np.float32([1, 0]), (len(list(images)), 1))

    def embed_texts(self, texts: Any) -> Any:
        shares = [text.split().count("dog") / len(text.split()) for text in texts]
        return np.float32([[share, (1 - share**2) ** 0.5] for share in shares])

    def close(self) -> None:
        pass


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty photos and their captions; `Eyes` look at them."""
    monkeypatch.setattr(Retriever, "open", lambda *_: Eyes())
    (tmp_path / "photos").mkdir()
    for index in range(60):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(tmp_path / "photos" / f"{index}.jpg")
    write_captions(tmp_path / "captions.jsonl", 60)
    return tmp_path


def test_a_caption_is_not_further_from_its_photo_than_the_furthest_human_one(
    photos: Path, caption_parser: SpacyParser
) -> None:
    humans = caption_parser.parse(["a dog runs", "a brown dog runs fast here"])
    with Gauge(ImageSource(photos / "photos"), None) as gauge:
        assert gauge.fails("0.jpg", "a dog runs fast", humans) == ""
        assert gauge.fails("0.jpg", "one brown dog runs fast here", humans) == ""
        reason = gauge.fails("0.jpg", "a brown dog runs fast over here", humans)
        assert "similarity 0.14, theirs from 0.17" in reason
        # Nobody can tell without the photo, or without a human caption.
        assert gauge.fails("no-such.jpg", "a cat", humans) == ""
        assert gauge.fails("0.jpg", "a cat", ()) == ""


@pytest.mark.usefixtures("caption_parser")
def test_fifty_random_examples_with_photos_and_every_figure_are_on_the_page(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "boost", "--captions", str(photos / "captions.jsonl"), "--out", str(photos / "out.jsonl"), "--json",
        "--images", str(photos / "photos"), "--html", str(photos / "page.html"),
    ]  # fmt: skip
    assert main([*arguments, "--seed", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    page = (photos / "page.html").read_text(encoding="utf-8")
    assert page.count('<figure><img src="data:image/jpeg;base64,') == 50
    for title in (
        "content words per caption", "words per caption", "attributes per caption", "vocabulary",
        "of words stated by a human caption", "captions nearly like another one",
        "captions rejected, by rule", "similarity with the photo",
    ):  # fmt: skip
        assert title in page
    # Grafts bring more words that are not "dog": the looking rule takes most of them back.
    assert report["rejected"]["similarity"] > 0
    assert f"<td>{report['similarity']['boosted']:.4f}</td>" in page
    assert main([*arguments, "--seed", "1"]) == 0
    assert (photos / "page.html").read_text(encoding="utf-8") == page
    assert main([*arguments, "--seed", "2"]) == 0
    assert (photos / "page.html").read_text(encoding="utf-8") != page


@pytest.mark.usefixtures("caption_parser")
def test_the_line_on_the_terminal_counts_rejections(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Progress(runner.Progress):
        def advance(self, *, failed: bool = False) -> None:
            notes.append(self.note)

    monkeypatch.setattr(runner, "Progress", Progress)
    arguments = ["--captions", str(photos / "captions.jsonl"), "--images", str(photos / "photos")]
    assert main(["boost", *arguments, "--out", str(photos / "out.jsonl")]) == 0
    assert len(notes) == 60
    assert int(notes[-1].removesuffix(" rejected")) > 0
