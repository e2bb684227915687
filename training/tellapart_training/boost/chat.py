"""A chat model behind one small face, and the OpenAI-compatible endpoint behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tellapart.errors import BackendError, MissingExtraError, UsageError

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: as it came.
        finish: why it ended: "stop", "length", "refusal".
        input_tokens: read, as the endpoint counts; estimated where it does not say.
        output_tokens: written.
    """

    text: str
    finish: str
    input_tokens: int
    output_tokens: int


class Fault(Exception):
    """A request that brought no answer; never leaves this room.

    Attributes:
        kind: by which it is counted: "http 429", "timeout", "cut".
        wait_s: how long the endpoint asks to be left alone.
        again: whether trying again can help.
        paid: whether the endpoint may have worked, and charge for it.
    """

    def __init__(self, kind: str, *, wait_s: float = 0.0, again: bool = True, paid: bool = False) -> None:
        super().__init__(kind)
        self.kind, self.wait_s, self.again, self.paid = kind, wait_s, again, paid


class Chat(Protocol):
    """Whatever answers messages."""

    name: str

    def complete(self, messages: Sequence[Message], decoding: Decoding) -> Answer:
        """One answer; called by many threads.

        Raises:
            Fault: none came.
            BackendError: none will ever come: wrong key, wrong name of the model.
        """


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are drawn; recorded with each."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 120
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More fields of a request; None leaves one of the usual fields out."""

    def fields(self) -> dict[str, Any]:
        """The fields of a request."""
        usual = {name: value for name, value in asdict(self).items() if name != "extra"}
        return {name: value for name, value in {**usual, **self.extra}.items() if value is not None}


class Endpoint:
    """A chat endpoint that speaks OpenAI's protocol: vLLM, llama.cpp, Ollama, or a hosted one.

    Args:
        base_url: address, such as http://127.0.0.1:8000/v1.
        model: name as the endpoint knows it.
        timeout_s: longest silence within one request.
        api_key_env: environment variable with the key; local servers need none. The key is never stored.

    Raises:
        MissingExtraError: the `openai` client is not installed.
        UsageError: an address that is none.
    """

    def __init__(self, base_url: str, model: str, *, timeout_s: float, api_key_env: str) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise MissingExtraError("boost", "an endpoint needs openai, which is not installed") from error
        if not base_url.startswith(("http://", "https://")):
            raise UsageError(f"--base-url must be http://... or https://..., got {base_url!r}")
        self.name = model
        self._errors = openai
        # Tries again are ours: each one is paced, counted and within the budget.
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=os.environ.get(api_key_env) or "none",
            timeout=timeout_s,
            max_retries=0,
        )

    def complete(self, messages: Sequence[Message], decoding: Decoding) -> Answer:
        """One answer of the endpoint.

        Raises:
            Fault: an error of HTTP, a timeout, a broken connection, an answer that is cut or empty.
            BackendError: key, address or name of the model are wrong.
        """
        errors = self._errors
        try:
            # Everything but the essentials goes by `extra_body`, so that any field can be left out or added.
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.name,
                messages=list(messages),  # type: ignore[arg-type]
                extra_body=decoding.fields(),
            )
            body = raw.http_response.text
        except errors.APITimeoutError:
            raise Fault("timeout", paid=True) from None
        except errors.APIConnectionError as error:
            refused = type(error.__cause__).__name__ == "ConnectError"
            raise Fault("no connection" if refused else "broken connection", paid=not refused) from None
        except errors.APIStatusError as error:
            raise _of_status(error) from error
        except errors.OpenAIError as error:
            raise Fault(f"client: {type(error).__name__}", paid=True) from error
        # Parsed here: the client takes a cut body for text of another kind and goes on.
        return _read_answer(body, messages)


def _of_status(error: Any) -> Exception:
    status = int(error.status_code)
    if status in (401, 403, 404):
        return BackendError(
            f"the endpoint refuses requests (HTTP {status}: {str(error)[:200]}): check "
            f"--base-url, --chat-model "
            f"and the key"
        )
    # What is wrong with one request alone, such as a content filter, must not end a run of a million.
    again = status in (408, 409, 425, 429) or status >= 500
    return Fault(f"http {status}", wait_s=_retry_after_s(error.response.headers), again=again)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    try:
        return min(600.0, max(0.0, float(headers.get("retry-after", "0"))))
    except ValueError:
        return 0.0  # a date; the back-off has to do


def _read_answer(body: str, messages: Sequence[Message]) -> Answer:
    try:
        whole = json.loads(body)
        choice = whole["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        usage = whole.get("usage") or {}
        finish = str(choice.get("finish_reason") or "stop")
        if message.get("refusal") or finish == "content_filter":
            text, finish = str(message.get("refusal") or text), "refusal"
        if not isinstance(text, str):
            raise TypeError("content is no text")
        tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        read = int(tokens[0]) if tokens[0] is not None else estimate_tokens(messages)
        written = int(tokens[1]) if tokens[1] is not None else len(text) // 4 + 1
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise Fault("cut", paid=True) from None
    # Cut off while it still thought, or filtered: asking the same again would bring the same.
    if not text.strip() and finish not in ("length", "refusal"):
        raise Fault("empty", paid=True)
    return Answer(text, finish, read, written)


IMAGE_TOKENS = 800
"""What a photo costs, about; endpoints differ by a factor of ten."""


def estimate_tokens(messages: Sequence[Message]) -> int:
    """Tokens of some messages: a quarter of their letters, eight a message, and 800 for a picture."""
    total = 0
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            total += IMAGE_TOKENS if part["type"] == "image_url" else len(part["text"]) // 4 + 1
        total += 8
    return total
