"""A captioner in a process of its own: questions as lines of JSON on stdin, answers on stdout.

    {"id": "1", "image": {"path": "a.jpg"}, "options": {...}}                   -> {"id": "1", "caption":
    {...}} {"id": "2", "images": [{...}, ...], "mode": "contrast", "options": {...}}   -> {"id": "2", "bag":
    {...}} what fails                                    -> {"id": ..., "error": {"type", "message", ...}}

The first line out is `{"ready": true}`, or `{"fatal": {"type", "message", ...}}` where the model cannot be
opened. It ends when stdin does, and its memory with it: nothing else gives a runtime's memory back for
certain. `tellapart.worker_captioner` is the other end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tellapart.captioner import Captioner
from tellapart.errors import TellapartError
from tellapart.types import RuntimeOptions
from tellapart.worker_lines import (
    image_from,
    options_from,
    runtime_from,
    to_bag,
    to_caption,
    to_error,
)

__all__ = ["answer", "main", "serve"]


def answer(captioner: Captioner, question: dict[str, Any]) -> dict[str, Any]:
    """One question's answer, without its id.

    Raises:
        TellapartError: what the captioner raises.
    """
    options = options_from(question.get("options", {}))
    if "image" in question:
        return {"caption": to_caption(captioner.caption(image_from(question["image"]), options=options))}
    images = [image_from(image) for image in question["images"]]
    return {"bag": to_bag(captioner.bag(images, mode=question["mode"], options=options))}


def serve(
    model: str | None,
    runtime: RuntimeOptions,
    answer: Callable[[Captioner, dict[str, Any]], dict[str, Any]] = answer,
) -> int:
    """Answer until stdin ends.

    Args:
        model: a bundle; None is the embedded one.
        runtime: as for `Captioner.open`.
        answer: what to make of a question; a TellapartError that it raises becomes an error record.

    Returns:
        0; 1 where the model cannot be opened.
    """
    # By number: a windowed program has no sys.stdin and no sys.stdout, and its pipes are there all the same.
    # What a library prints must not come between the lines, so the pipe is kept and stdout goes to stderr.
    with open(0, "rb", closefd=False) as questions, os.fdopen(os.dup(1), "wb") as out:
        with suppress(OSError):  # there may be no stderr either
            os.dup2(2, 1)

        def say(record: dict[str, Any]) -> None:
            out.write(json.dumps(record).encode("ascii") + b"\n")
            out.flush()

        try:
            captioner = Captioner.open(model, runtime=runtime)
        except TellapartError as error:
            say({"fatal": to_error(error)})
            return 1
        with captioner:
            say({"ready": True})
            for line in questions:
                question = json.loads(line)
                try:
                    found = answer(captioner, question)
                except TellapartError as error:
                    found = {"error": to_error(error)}
                say({"id": question["id"], **found})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Answer until stdin ends; 1 where the model cannot be opened."""
    parser = argparse.ArgumentParser(prog="tellapart-worker")
    parser.add_argument("--model")
    parser.add_argument("--runtime", default="{}", help="RuntimeOptions as JSON")
    args = parser.parse_args(argv)
    return serve(args.model, runtime_from(json.loads(args.runtime)))


if __name__ == "__main__":
    sys.exit(main())
