"""The worker: lines in, lines out, errors as records, and words that set captions apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tellapart import Captioner
from tellapart_app.worker import words_apart

ROOT = Path(__file__).parents[2]
BAG = sorted(str(path) for path in (ROOT / "samples" / "bag").glob("*.jpg"))


def converse(questions: list[dict[str, Any]], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Ask a worker all questions; its exit status and what it said."""
    rooms = os.pathsep.join(str(ROOT / room) for room in ("sdk", "apps"))
    done = subprocess.run(
        [sys.executable, "-m", "tellapart_app.worker", *arguments],
        input="".join(json.dumps(question) + "\n" for question in questions),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": rooms},
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_every_question_is_answered_and_the_end_of_questions_is_the_end() -> None:
    status, said = converse(
        [{"id": "1", "image": BAG[0]}, {"id": "2", "image": "gone.jpg"}, {"id": "3", "images": BAG}]
    )
    assert status == 0
    ready, one, gone, bag = said
    assert ready == {"ready": True}
    with Captioner.open() as captioner:
        caption = captioner.caption(BAG[0])
        told = captioner.bag(BAG, mode="contrast")
    assert (one["id"], one["caption"], one["confidence"]) == ("1", caption.text, caption.confidence)
    assert gone["error"]["type"] == "UnreadableImageError"
    assert [record["caption"] for record in bag["captions"]] == [caption.text for caption in told.captions]
    assert [record["rank"] for record in bag["captions"]] == list(told.ranks)


def test_a_model_that_cannot_be_opened_is_said_and_the_end(tmp_path: Path) -> None:
    status, said = converse([], "--model", str(tmp_path))
    assert status == 1
    assert "tellapart.json" in said[0]["fatal"]["message"]


def test_words_apart_are_those_that_no_other_caption_has() -> None:
    captions = ["A boy in a red shirt plays", "A boy in a blue shirt plays with a ball", "A boy runs"]
    assert words_apart(captions) == [["red"], ["blue", "ball"], ["runs"]]
    assert words_apart(["The same", "The same"]) == [[], []]
    assert words_apart(["Alone"]) == [["alone"]]


@pytest.mark.parametrize("text", ["", "...", "A the of"])
def test_captions_without_content_have_no_words_apart(text: str) -> None:
    assert words_apart([text, "a dog"]) == [[], ["dog"]]
