"""What the page answers, without a browser and without Gradio."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart import Captioner
from tellapart.cli import main
from tellapart_app.answers import Answers

ROOT = Path(__file__).parents[2]
BAG = sorted(str(path) for path in (ROOT / "samples" / "bag").glob("*.jpg"))
PHOTOS = sorted(str(path) for path in (ROOT / "samples" / "photos").glob("*.jpg"))


@pytest.fixture(scope="module")
def captioner() -> Iterator[Captioner]:
    with Captioner.open() as opened:
        yield opened


@pytest.fixture
def answers(captioner: Captioner) -> Answers:
    return Answers(captioner)


class Reader(HTMLParser):
    """Attributes of the tags of one kind."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self.tag, self.found = tag, list[dict[str, str | None]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == self.tag:
            self.found.append(dict(attrs))


def tags(html: str, tag: str) -> list[dict[str, str | None]]:
    reader = Reader(tag)
    reader.feed(html)
    return reader.found


def test_captions_come_one_after_the_other(answers: Answers, captioner: Captioner) -> None:
    pages = list(answers.captions(BAG))
    assert [len(tags(page, "img")) for page in pages] == [1, 2, 3]
    texts = [image["alt"] for image in tags(pages[-1], "img")]
    assert texts == [captioner.caption(path).text for path in BAG]
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in tags(pages[-1], "img"))
    assert list(answers.captions(None)) == [""]


def test_a_blank_photo_is_unsure_and_a_broken_one_a_sentence(answers: Answers, tmp_path: Path) -> None:
    blank, broken = tmp_path / "blank.png", tmp_path / "<b>broken.jpg"
    Image.fromarray(np.full((64, 64, 3), 240, np.uint8)).save(blank)
    broken.write_bytes(b"no picture")
    *_, page = answers.captions([str(blank), str(broken)])
    assert "unsure, confidence" in page
    assert 'role="alert"' in page
    assert "<b>" not in page  # a file name is text


def test_a_bag_is_a_page_in_a_frame_without_scripts(answers: Answers) -> None:
    [frame] = tags(answers.bag(BAG, "contrast"), "iframe")
    assert frame["sandbox"] == ""
    page = frame["srcdoc"] or ""
    assert page.startswith("<!DOCTYPE html>")
    assert len(set(re.findall(r"rank \d of 3", page))) >= 1
    assert "at least two" in answers.bag(BAG[:1], "contrast")


def test_search_looks_at_what_was_dropped_or_at_the_one_folder(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = "a man takes a picture with a camera"
    dropped = Answers(captioner).search(PHOTOS, words, top=2)
    assert tags(dropped, "img")[0]["alt"] == "cameraman.jpg"
    assert len(tags(dropped, "img")) == 2
    folder = Answers(captioner, photos=Path(PHOTOS[0]).parent).search(None, words)
    assert tags(folder, "img")[0]["alt"] == "cameraman.jpg"
    assert "--photos" in Answers(captioner).search(None, words)
    assert "write what to look for" in Answers(captioner).search(PHOTOS, "  ")


def test_truematch_reports_on_bags_of_the_photos(
    answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    [frame] = tags(answers.truematch([*BAG, *PHOTOS]), "iframe")
    assert "Recall@1" in (frame["srcdoc"] or "")
    assert capsys.readouterr().out == ""
    assert "got 2" in answers.truematch(BAG[:2])


def test_without_gradio_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", "--no-browser"]) == 2
    assert 'pip install "tellapart[app]"' in capsys.readouterr().err


def test_without_qt_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith(("PySide6", "tellapart_app.window"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "PySide6", None)
    monkeypatch.setitem(sys.modules, "PySide6.QtCore", None)
    assert main(["desktop"]) == 2
    assert 'pip install "tellapart[desktop]"' in capsys.readouterr().err


def test_wrong_arguments_are_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--port", "70000"]) == 2
    assert main(["app", "--photos", str(tmp_path / "gone")]) == 2
    assert "is not a folder" in capsys.readouterr().err
