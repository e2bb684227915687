"""The expert that reads: text in the photo, by RapidOCR, whose package carries its models.

Only lines of words that English has, for what is misread is hardly ever a word: one of them with four letters
at least, none of them at the edge of the photo, where words are cut.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Container, Sequence
from typing import Any

from tellapart.errors import MissingExtraError
from tellapart.types import PixelArray
from tellapart_training.boost.experts.expert import ExpertSetting, Sight
from tellapart_training.boost.parsing import english_words
from tellapart_training.boost.source import Subject

LEAST = 0.9
_MOST = 1
_WORDS = 3
_EDGE = 0.02
_READABLE = re.compile(r"(?=.*[A-Za-z]{4})[A-Za-z0-9][A-Za-z0-9 '&-]*")


class TextExpert:
    """Reads text in photos; safe from many threads.

    Args:
        reader: RapidOCR's engine, or what behaves like it: called with (h, w, 3) uint8 BGR, its result has
            `txts`, `scores` and `boxes`, all None where there is no text.
        words: that English has, in lower case; what is no word in it is taken for misread.
        least: least score of a line, in [0, 1].
    """

    name = "text"

    def __init__(self, reader: Any, words: Container[str], *, least: float = LEAST) -> None:
        self._reader, self._words, self._least = reader, words, least
        self._lock = threading.Lock()

    def see(self, photo: PixelArray, subject: Subject) -> list[Sight]:
        """The surest line of text, if any is sure enough."""
        with self._lock:  # one call at a time: its stages keep what they saw
            found = self._reader(photo[:, :, ::-1].copy())
        if found.txts is None:
            return []
        said = {word.strip(".,!?").lower() for text in subject.texts for word in text.split()}
        lines: dict[str, float] = {}
        for text, score, box in zip(found.txts, found.scores, found.boxes, strict=True):
            line = " ".join(str(text).split())
            if score < self._least or not _READABLE.fullmatch(line) or at_edge(box, photo.shape):
                continue
            own = [word.lower() for word in line.split()]
            if len(own) <= _WORDS and not set(own) <= said and all(word in self._words for word in own):
                lines[line] = max(float(score), lines.get(line, 0.0))
        best = sorted(lines.items(), key=lambda pair: (-len(pair[0]), pair[0]))[:_MOST]
        return [_sight(line, score) for line, score in best]


def at_edge(box: Sequence[Sequence[float]], shape: tuple[int, ...]) -> bool:
    """Whether a box touches the edge of a photo, so that its text may go on outside.

    Args:
        box: corners as (x, y) in pixels.
        shape: of the photo, height first.
    """
    height, width = shape[:2]
    across, down = [float(x) for x, _ in box], [float(y) for _, y in box]
    return (
        min(across) < _EDGE * width
        or max(across) > (1 - _EDGE) * width
        or min(down) < _EDGE * height
        or max(down) > (1 - _EDGE) * height
    )


def _sight(line: str, score: float) -> Sight:
    noun = "words" if " " in line else "word"
    verb = "are" if " " in line else "is"
    return Sight(
        statement=f"The {noun} {line} {verb} in view.",
        phrase=f'with the {noun} "{line}" in view',
        score=score,
    )


def open_expert(setting: ExpertSetting) -> TextExpert:
    """The expert with RapidOCR on one thread.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from rapidocr import RapidOCR
    except ModuleNotFoundError as error:
        raise MissingExtraError("ocr", f"--vision text needs {error.name}, which is not installed") from error
    threads = {f"EngineConfig.onnxruntime.{name}_op_num_threads": 1 for name in ("intra", "inter")}
    reader = RapidOCR(params={"Global.log_level": "error", **threads})
    return TextExpert(reader, english_words(), least=LEAST if setting.least is None else setting.least)
