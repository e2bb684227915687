"""What the generators that ask a language model need to know, as a dataclass and as argparse reads it."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tellapart.errors import UsageError
from tellapart_training.boost.chat import Decoding
from tellapart_training.boost.experts.registry import OWN, expert_names, split_wanted
from tellapart_training.boost.local_model import DEVICES

MODELS = ("endpoint", "local")
"""Models that look at photos, as `--vision` names them; whatever else looks is an expert."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Who is asked, how, how fast, and for how much."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of an OpenAI-compatible endpoint."""
    chat_model: str = ""
    """Name of the model, as the endpoint knows it."""
    vision_model: str = ""
    """Model that looks at photos, of the endpoint or of this machine; "" is the one that writes."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key."""
    local_model: str = ""
    """Folder, or name on the hub, of a language model that runs here."""
    revision: str = ""
    """Commit, tag or branch of the hub; "" is the newest."""
    device: str = "auto"
    """Where the local model runs."""
    batch: int = 8
    """Answers that the local model writes side by side."""
    prompt: str = "blend-plain-1"
    """Prompt for captions alone, by name or file."""
    fuse_prompt: str = "fuse-plain-1"
    """Prompt for captions and what is seen."""
    describe_prompt: str = "describe-1"
    """Prompt of the model that looks."""
    vision: tuple[str, ...] = ()
    """Who looks at the photos, NAME or NAME=LEAST; none is BlendCap, any is HolisticCap."""
    image_px: int = 768
    """Longest side of a photo that is sent."""
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 120
    """Of one answer."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of a request."""
    concurrency: int = 16
    """Images at work at once."""
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    """Both 0 without a limit."""
    timeout_s: float = 60.0
    """Longest silence within one request."""
    retries: int = 6
    """Further tries of a request that failed."""
    backoff_s: float = 0.5
    """Longest wait after the first failure; it doubles with each."""
    tries: int = 3
    """Answers asked for one caption, each with the reason why the last was rejected."""
    budget_tokens: int = 0
    budget_money: float = 0.0
    """Both 0 without a limit; resumed runs count together."""
    price_input: float = 0.0
    price_output: float = 0.0
    """Money for a million tokens."""
    journal: Path | None = None
    """Where answers are kept; None is beside the output."""
    dry_run: bool = False
    """Estimate requests, tokens and money, and ask nothing."""

    def __post_init__(self) -> None:
        for name, _ in map(split_wanted, self.vision):
            if name not in (*MODELS, *expert_names()):
                raise UsageError(
                    f"nobody called {name} looks: choose from {', '.join((*MODELS, *expert_names()))}"
                )
        models = [one for one in self.vision if split_wanted(one)[0] in MODELS]
        if len(models) > 1 or not set(models) <= set(MODELS):
            raise UsageError("--vision takes one model that looks, endpoint or local, and no =X for it")
        counts = (self.concurrency, self.tries, self.max_tokens, self.image_px, self.batch)
        if min(counts) < 1 or self.timeout_s <= 0:
            raise UsageError(
                "--concurrency, --tries, --max-tokens, --image-px, --batch from 1, --timeout above 0"
            )
        if self.device not in DEVICES:
            raise UsageError(f"--device {self.device}: choose {', '.join(DEVICES)}")
        amounts = (
            self.requests_per_minute, self.tokens_per_minute, self.retries, self.backoff_s,
            self.budget_tokens, self.budget_money, self.price_input, self.price_output, self.temperature,
        )  # fmt: skip
        if min(amounts) < 0:
            raise UsageError("rates, retries, budgets, prices and the temperature are never below 0")
        if self.budget_money and not (self.price_input or self.price_output):
            raise UsageError("--budget-money needs --price-input and --price-output, for a million tokens")

    @property
    def looks(self) -> bool:
        """Whether a model looks at the photos."""
        return bool(set(MODELS) & set(self.vision))

    @property
    def decoding(self) -> Decoding:
        """How answers are drawn."""
        return self.decoding_of(self.max_tokens)

    def decoding_of(self, max_tokens: int) -> Decoding:
        """The same for answers of another length."""
        return Decoding(
            temperature=self.temperature, top_p=self.top_p, max_tokens=max_tokens, extra=self.extra
        )


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of a language model, with the defaults of `ChatOptions`."""
    own = ChatOptions()
    model = parser.add_argument_group(
        "language model (--generator endpoint; prompts and decoding: local too)"
    )
    model.add_argument("--base-url", default=own.base_url, metavar="URL", help="OpenAI-compatible endpoint")
    model.add_argument("--chat-model", default="", metavar="NAME", help="name of the model there")
    model.add_argument(
        "--vision-model", default="", metavar="NAME|FOLDER", help="model that looks, unless the writer does"
    )
    model.add_argument(
        "--api-key-env", default=own.api_key_env, metavar="VARIABLE", help="environment variable of the key"
    )
    model.add_argument("--prompt", default=own.prompt, metavar="NAME|FILE.txt", help="prompt of the blend")
    model.add_argument("--fuse-prompt", default=own.fuse_prompt, metavar="NAME|FILE.txt", help="with vision")
    model.add_argument("--describe-prompt", default=own.describe_prompt, metavar="NAME|FILE.txt")
    model.add_argument(
        "--vision", nargs="+", default=(), metavar="WHO",
        help=f"who looks at the photos, for HolisticCap: {', '.join((*MODELS, *OWN))}, or an expert of "
        "another package; NAME=X keeps what scores below X to itself",
    )  # fmt: skip
    model.add_argument("--image-px", type=int, default=own.image_px, metavar="N", help="longest side sent")
    model.add_argument("--temperature", type=float, default=own.temperature)
    model.add_argument("--top-p", type=float, default=own.top_p)
    model.add_argument("--max-tokens", type=int, default=own.max_tokens, metavar="N", help="of one answer")
    model.add_argument(
        "--extra", type=_json_object, default={}, metavar="JSON",
        help='more fields of a request, null leaves one out: {"seed": null, "reasoning_effort": "low"}',
    )  # fmt: skip
    local = parser.add_argument_group("language model on this machine (--generator local)")
    local.add_argument(
        "--local-model", default="", metavar="FOLDER|NAME",
        help="language or image-text model of Hugging Face, in safetensors; a name is owner/name of the hub",
    )  # fmt: skip
    local.add_argument("--revision", default="", metavar="COMMIT", help="of the hub, for a name")
    local.add_argument("--device", choices=DEVICES, default=own.device, help="where it runs")
    local.add_argument("--batch", type=int, default=own.batch, metavar="N", help="answers side by side")
    pace = parser.add_argument_group("pace and money")
    pace.add_argument("--concurrency", type=int, default=own.concurrency, metavar="N", help="images at once")
    pace.add_argument("--requests-per-minute", type=float, default=0.0, metavar="N")
    pace.add_argument("--tokens-per-minute", type=float, default=0.0, metavar="N")
    pace.add_argument("--timeout", dest="timeout_s", type=float, default=own.timeout_s, metavar="SECONDS")
    pace.add_argument("--retries", type=int, default=own.retries, metavar="N", help="of a failed request")
    pace.add_argument("--backoff", dest="backoff_s", type=float, default=own.backoff_s, metavar="SECONDS")
    pace.add_argument("--tries", type=int, default=own.tries, metavar="N", help="answers for one caption")
    pace.add_argument("--budget-tokens", type=int, default=0, metavar="N", help="stop before more are used")
    pace.add_argument(
        "--budget-money", type=float, default=0.0, metavar="X", help="stop before more is spent"
    )
    pace.add_argument("--price-input", type=float, default=0.0, metavar="X", help="of a million tokens")
    pace.add_argument("--price-output", type=float, default=0.0, metavar="X", help="of a million tokens")
    pace.add_argument("--journal", type=Path, metavar="FILE", help="answers, for resuming; beside --out")
    pace.add_argument("--dry-run", action="store_true", help="estimate requests, tokens, money; ask nothing")


def chat_options_of(arguments: argparse.Namespace) -> ChatOptions:
    """The options that a user typed.

    Raises:
        UsageError: some that do not go together.
    """
    given = {one.name: getattr(arguments, one.name) for one in fields(ChatOptions)}
    given["vision"] = tuple(dict.fromkeys(given["vision"]))
    return ChatOptions(**given)


def _json_object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found
