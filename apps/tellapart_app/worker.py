"""The model in a process of its own: questions as lines of JSON on stdin, answers on stdout.

    {"id": "1", "image": "a.jpg"}       -> {"id": "1", "caption", "confidence", "unsure"}
    {"id": "2", "images": ["a.jpg"...]} -> {"id": "2", "captions": [{... "rank", "margin", "apart"}...]}
    what fails                          -> {"id": ..., "error": {"type", "message"}}

The loop, and what comes first and last, is that of `tellapart.worker`; the questions are the window's own.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from tellapart.captioner import Captioner
from tellapart.types import Caption, DecodeOptions, RuntimeOptions, UnsureCaption
from tellapart.worker import serve

__all__ = ["answer", "main", "words_apart"]

_COMMON = """
a an and are as at be by for from has have he her his in into is it its of on or out over she that
the their there they this to two up was were while who with
"""
"""Words that set nothing apart."""


def words_apart(captions: Sequence[str]) -> list[list[str]]:
    """For each caption its words that no other one has, in their order; words without content left out."""
    spoken = [re.findall(r"[a-z0-9][a-z0-9'-]*", caption.lower()) for caption in captions]
    found, common = [], set(_COMMON.split())
    for place, words in enumerate(spoken):
        others = {word for other, said in enumerate(spoken) if other != place for word in said}
        found.append([word for word in dict.fromkeys(words) if word not in others | common])
    return found


def answer(captioner: Captioner, question: dict[str, Any]) -> dict[str, Any]:
    """One question's answer, without its id.

    Raises:
        TellapartError: what a user can meet; the loop makes an error record of it.
    """
    options = DecodeOptions()
    if captioner.bundle.manifest.confidence is not None:
        options = DecodeOptions(min_confidence="default")
    if "image" in question:
        return _record(captioner.caption(question["image"], options=options))
    result = captioner.bag(question["images"], mode="contrast", options=options)
    apart = words_apart([caption.text for caption in result.captions])
    told = zip(result.captions, result.ranks, result.margins, apart, strict=True)
    return {
        "captions": [
            {**_record(caption), "rank": rank, "margin": round(margin, 4), "apart": words}
            for caption, rank, margin, words in told
        ]
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Answer until stdin ends; 1 where the model cannot be opened."""
    parser = argparse.ArgumentParser(prog="tellapart-worker")
    parser.add_argument("--model")
    args = parser.parse_args(argv)
    return serve(args.model, RuntimeOptions(), answer)


def _record(caption: Caption) -> dict[str, Any]:
    return {
        "caption": caption.text,
        "confidence": caption.confidence,
        "unsure": isinstance(caption, UnsureCaption),
    }


if __name__ == "__main__":
    sys.exit(main())
