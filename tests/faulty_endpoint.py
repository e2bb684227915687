"""A chat endpoint on this machine that fails by a script, and the scenes that it is asked about.

Every request about an image takes the next turn of that image's script, drawn from a seed, so that a run
meets the same faults each time, however its requests are interleaved. The endpoint keeps count of all it
did.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

ANIMALS = ("dog", "cat", "horse", "goat", "cow", "sheep", "rabbit", "duck")
COLOURS = ("brown", "black", "white", "gray", "yellow", "tan", "orange")
SIZES = ("large", "small", "tiny", "huge", "young")
THINGS = ("collar", "leash", "bell", "harness", "ribbon", "blanket", "stick", "ball", "bone")
ACTIONS = ("running", "jumping", "standing", "walking", "playing", "resting", "sleeping", "sitting")
PLACES = ("grass", "sand", "snow", "road", "beach", "field", "path", "sidewalk", "rock", "bridge", "hill")

TRANSPORT = {
    "429": "http 429", "500": "http 500", "503": "http 503", "hang": "timeout", "drop": "broken connection",
    "short": "broken connection", "cut": "cut", "page": "cut", "empty": "empty",
}  # fmt: skip
"""Faults that bring no answer, and the name under which the run counts each."""
CONTENT = {
    "refusal": "refusal", "sorry": "meta", "german": "language", "echo": "echo", "other": "words",
    "long": "cut off", "two": "sentence", "meta": "meta",
}  # fmt: skip
"""Answers that are of no use, and the rule that each one breaks."""


def scene(index: int) -> dict[str, str]:
    """What is in image number `index`; any two of 10,000 differ in something."""
    words = {}
    for name, choices in (
        ("animal", ANIMALS), ("colour", COLOURS), ("size", SIZES), ("thing", THINGS), ("action", ACTIONS),
        ("place", PLACES),
    ):  # fmt: skip
        index, place = divmod(index, len(choices))
        words[name] = choices[place]
    return words


def human_captions(index: int) -> list[str]:
    """What three people wrote about an image."""
    forms = (
        "A {colour} {animal} is {action} on the {place} .",
        "The {animal} with a {thing} is {action} .",
        "A {size} {animal} on the {place} .",
    )
    return [form.format(**scene(index)) for form in forms]


def good_caption(index: int) -> str:
    """A blend that every rule lets pass."""
    return "A {size} {colour} {animal} with a {thing} is {action} on the {place}.".format(**scene(index))


def write_captions(path: Path, count: int) -> None:
    """A captions file of the first images."""
    lines = [
        json.dumps({"image": f"{index}.jpg", "split": "train", "captions": human_captions(index)})
        for index in range(count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class FaultyEndpoint:
    """The endpoint; a context manager.

    Args:
        count: images that it knows.
        share: of turns that fail, spread evenly over `faults`.
        faults: names out of `TRANSPORT` and `CONTENT`.
        hang_s: how long it says nothing where it hangs.
        delay_s: how long an answer takes.
        seed: of the script.
        answer: text for the body of a request, in place of all the above.
    """

    def __init__(
        self,
        count: int,
        *,
        share: float = 0.0,
        faults: Sequence[str] = (*TRANSPORT, *CONTENT),
        hang_s: float = 4.0,
        delay_s: float = 0.0,
        seed: int = 0,
        answer: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        self.share, self.faults, self.hang_s, self.delay_s = share, tuple(faults), hang_s, delay_s
        self.status = 0
        """Answers every request with this status, where it is set."""
        self.did: Counter[str] = Counter()
        """Turns by what was done: "good" or the name of a fault."""
        self.answered: Counter[str] = Counter()
        """Whole answers, which a hosted endpoint would charge for, by the body of the request."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        # Asked about as they are once cleaned.
        self._index = {
            tuple(text.replace(" .", ".") for text in human_captions(index)): index for index in range(count)
        }
        self._turns: Counter[int] = Counter()
        self._seed, self._answer, self._lock = seed, answer, threading.Lock()
        self._closing = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                endpoint._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up

    @property
    def url(self) -> str:
        """Address for `--base-url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FaultyEndpoint:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def requests(self) -> int:
        """All requests so far."""
        return sum(self.did.values())

    @property
    def paid_twice(self) -> int:
        """Whole answers to a request that had been answered before."""
        return sum(count - 1 for count in self.answered.values())

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        body = json.loads(raw)
        with self._lock:
            self.bodies.append(body)
            self.keys.add(handler.headers.get("Authorization", ""))
        if self.status:
            self._note(f"status {self.status}")
            _send(handler, b'{"error": {"message": "no"}}', status=self.status)
            return
        if self._answer is not None:
            self._note("good", raw)
            _send(handler, _completion(self._answer(body)))
            return
        index = self._index[tuple(json.loads(body["messages"][1]["content"]))]
        fault = self._next_fault(index)
        if self.delay_s:
            time.sleep(self.delay_s)
        if fault in TRANSPORT:
            self._note(fault)
            self._fail(handler, fault, index)
        else:
            self._note(fault, raw)
            _send(handler, self._say(fault, index))

    def _next_fault(self, index: int) -> str:
        with self._lock:
            self._turns[index] += 1
            turn = self._turns[index]
        draw = random.Random(f"{self._seed} {index} {turn}")
        return draw.choice(self.faults) if draw.random() < self.share else "good"

    def _note(self, did: str, answered: bytes | None = None) -> None:
        with self._lock:
            self.did[did] += 1
            if answered is not None:
                self.answered[answered.decode()] += 1

    def _fail(self, handler: BaseHTTPRequestHandler, fault: str, index: int) -> None:
        if fault == "429":
            _send(handler, b'{"error": {"message": "slow down"}}', status=429, extra={"Retry-After": "0.05"})
        elif fault in ("500", "503"):
            _send(handler, b"<html>oops</html>", status=int(fault))
        elif fault == "hang":
            self._closing.wait(self.hang_s)
            handler.close_connection = True
        elif fault == "drop":
            handler.close_connection = True
        elif fault == "short":
            whole = _completion(good_caption(index))
            _send(handler, whole[: len(whole) // 2], length=len(whole))
            handler.close_connection = True
        elif fault == "cut":
            whole = _completion(good_caption(index))
            _send(handler, whole[: len(whole) // 2])
        elif fault == "page":
            _send(handler, b"<html>Please log in</html>", extra={"Content-Type": "text/html"})
        else:
            _send(handler, _completion(" "))

    def _say(self, fault: str, index: int) -> bytes:
        good = good_caption(index)
        if fault == "refusal":
            return _completion(None, refusal="I will not.")
        if fault == "long":
            return _completion(good * 4, finish="length")
        texts = {
            "good": good,
            "sorry": "I'm sorry, but I cannot help with that.",
            "german": "Ein großer Hund mit einem Halsband läuft auf der Wiese und spielt mit dem Ball.",
            "echo": "No object, attribute, number, place, mood or guess of your own.",
            "other": good_caption(index + 1),  # another animal, always
            "two": f"{good} It is on the {scene(index)['place']}.",
            "meta": f"The image shows a {good[2:]}",
        }
        return _completion(texts[fault])


def _completion(text: str | None, *, finish: str = "stop", refusal: str | None = None) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    usage = {"prompt_tokens": 200, "completion_tokens": 20, "total_tokens": 220}
    return json.dumps(
        {
            "id": "x", "object": "chat.completion", "created": 0, "model": "toy", "usage": usage,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        }
    ).encode()  # fmt: skip


def _send(
    handler: BaseHTTPRequestHandler,
    body: bytes,
    *,
    status: int = 200,
    length: int | None = None,
    extra: dict[str, str] | None = None,
) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **(extra or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
