"""A run that asks a language model: many images at once, answers in a journal, an orderly end on errors."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

from tellapart_training.boost.asking import Asker, Pace
from tellapart_training.boost.chat import Chat, Endpoint
from tellapart_training.boost.chat_options import MODELS
from tellapart_training.boost.chat_writer import ChatWriter, Recipe
from tellapart_training.boost.checks import Checker
from tellapart_training.boost.experts.registry import open_experts
from tellapart_training.boost.extractive import Extractive
from tellapart_training.boost.journal import Journal
from tellapart_training.boost.local_chat import LocalChat
from tellapart_training.boost.local_model import open_model
from tellapart_training.boost.options import BoostOptions
from tellapart_training.boost.outcome import Done, Outcome
from tellapart_training.boost.parsing import Parser
from tellapart_training.boost.prompt import load_prompt
from tellapart_training.boost.source import Subject
from tellapart_training.boost.spending import Budget, Prices, RateLimit
from tellapart_training.boost.vision import DESCRIPTION_TOKENS, Look, Vision
from tellapart_training.images import ImageSource

_AHEAD = 512
"""Images handed out before the first comes back: enough to work on while the next block is parsed."""


class ChatRun:
    """Everything that one run with a language model holds; a context manager.

    Args:
        options: of the run.
        checker: rules that are on.
        parser: safe from many threads.
        fallback: steps in where the model fails.

    Raises:
        DataError: a journal that cannot be used.
        CheckpointError: a local model that cannot be opened.
        MissingExtraError: the client, or transformers, is not installed.
        UsageError: a prompt or an address that is none.
    """

    def __init__(
        self, options: BoostOptions, *, checker: Checker, parser: Parser, fallback: Extractive
    ) -> None:
        chat = options.chat
        recipe = make_recipe(options)
        looks_at = "local" if "local" in chat.vision else "endpoint"
        alone = (looks_at, chat.vision_model or recipe.model) == (options.generator, recipe.model)
        talker, source = _open_chat(options, options.generator, recipe.model, sees=chat.looks and alone)
        recipe, looker, seen_by = replace(recipe, source=source), talker, source
        if chat.looks and not alone:
            looker, seen_by = _open_chat(options, looks_at, chat.vision_model, sees=True)
        self._options, self._stop = options, threading.Event()
        self._journal = Journal(options.journal, journal_header(options, recipe, seen_by))
        self._budget = Budget(
            chat.budget_tokens, chat.budget_money, Prices(chat.price_input, chat.price_output)
        )
        for spent in self._journal.spent:
            self._budget.spend(spent)
        pace = Pace(
            requests=RateLimit(chat.requests_per_minute),
            tokens=RateLimit(chat.tokens_per_minute),
            retries=chat.retries,
            backoff_base_s=chat.backoff_s,
        )
        self._counts: Counter[str] = Counter()
        asker, look_asker = (
            Asker(one, self._journal, self._budget, pace=pace, stop=self._stop, counts=self._counts)
            for one in (talker, looker)
        )
        look = None
        if chat.looks:
            decoding = chat.decoding_of(DESCRIPTION_TOKENS)
            look = Look(
                look_asker, load_prompt(chat.describe_prompt), decoding, chat.image_px,
                model=chat.vision_model or recipe.model, source=seen_by,
            )  # fmt: skip
        vision = open_vision(options, parser=parser, look=look)
        self._writer = ChatWriter(
            asker, recipe, checker=checker, parser=parser, fallback=fallback, vision=vision
        )
        self._rejected = 0

    def __enter__(self) -> ChatRun:
        """The run itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the journal."""
        self._stop.set()
        self._journal.__exit__(kind, error, trace)

    def outcomes(self, subjects: Iterable[Subject]) -> Iterator[Done]:
        """What becomes of the images, in the order in which they are done.

        Raises:
            BudgetError, BackendError: as `Asker.ask`; what was under way is waited for and kept.
        """
        chat = self._options.chat
        # While one batch is written, the next one gathers.
        many = 2 * chat.batch if self._options.generator == "local" else chat.concurrency
        return run_many(subjects, self._writer.write, concurrency=many, stop=self._stop)

    def note(self, outcome: Outcome) -> str:
        """What the progress line says besides."""
        self._rejected += sum(outcome.rejected.values())
        parts = [f"{self._rejected} rejected", f"{sum(self._journal.faults.values())} faults"]
        parts.append(f"{self._budget.tokens} tokens")
        if self._budget.money:
            parts.append(f"{self._budget.money:.2f} spent")
        return ", ".join(parts)

    def report(self) -> dict[str, Any]:
        """Requests of this run, and faults, tokens and money of all runs with this journal."""
        names = ("requests", "answers", "from journal", "given up")
        return {
            **{name: self._counts[name] for name in names if self._counts[name] or name == "requests"},
            **dict(sorted(self._journal.faults.items())),
            "tokens": self._budget.tokens,
            **({"money": round(self._budget.money, 6)} if self._budget.money else {}),
        }


def open_vision(options: BoostOptions, *, parser: Parser, look: Look | None = None) -> Vision | None:
    """Who looks at the photos; None where nobody does.

    Args:
        options: of the run.
        parser: safe from many threads.
        look: of a model that looks, besides the experts.

    Raises:
        DataError, BundleError: photos or an expert's bundle cannot be opened.
        MissingExtraError: an expert's package is not installed.
    """
    if not options.chat.vision or options.images is None:
        return None
    wanted = [one for one in options.chat.vision if one not in MODELS]
    experts = open_experts(wanted, scorer=options.scorer, captioner=options.captioner)
    return Vision(ImageSource(options.images), experts=experts, look=look, parser=parser)


def make_recipe(options: BoostOptions) -> Recipe:
    """How captions are asked for.

    Raises:
        UsageError: there is no such prompt.
    """
    return Recipe(
        generator=options.generator,
        model=options.chat.local_model or options.chat.chat_model,
        blend=load_prompt(options.chat.prompt),
        fuse=load_prompt(options.chat.fuse_prompt),
        decoding=options.chat.decoding,
        per_image=options.per_image,
        tries=options.chat.tries,
        max_words=options.max_words,
    )


def journal_header(options: BoostOptions, recipe: Recipe, seen_by: Mapping[str, Any]) -> dict[str, Any]:
    """What the answers in a journal depend on.

    Args:
        options: of the run.
        recipe: with what is known of the model that writes.
        seen_by: what is known of the one that looks.
    """
    chat = options.chat
    prompts = [recipe.blend.record()]
    if chat.vision:
        prompts += [recipe.fuse.record(), load_prompt(chat.describe_prompt).record()]
    return {
        "format": 1,
        "generator": options.generator,
        "model": recipe.model,
        **({"source": dict(recipe.source)} if recipe.source else {}),
        "vision": list(chat.vision),
        "vision_model": chat.vision_model,
        **({"vision_source": dict(seen_by)} if chat.vision_model and seen_by else {}),
        "prompts": prompts,
        "decoding": recipe.decoding.fields(),
        "max_words": options.max_words,
    }


def _open_chat(options: BoostOptions, where: str, name: str, *, sees: bool) -> tuple[Chat, dict[str, Any]]:
    """A model by name, and what is known of it besides."""
    chat = options.chat
    if where == "endpoint":
        return Endpoint(chat.base_url, name, timeout_s=chat.timeout_s, api_key_env=chat.api_key_env), {}
    revision = chat.revision if name == chat.local_model else ""
    model = open_model(name, revision=revision, device=chat.device, sees=sees)
    return LocalChat(model, batch=chat.batch), model.record()


def run_many(
    subjects: Iterable[Subject],
    write: Callable[[Subject], Outcome],
    *,
    concurrency: int,
    stop: threading.Event,
) -> Iterator[Done]:
    """Write many images at once.

    The threads are daemons, so that Ctrl-C ends the process at once, as a kill would. On an error the
    others finish what they paid for first.

    Args:
        subjects: read ahead as they are needed.
        write: called by many threads.
        concurrency: how many.
        stop: set when the run ends.

    Raises:
        BudgetError, BackendError: the first error that `write` raised.
    """
    todo: queue.SimpleQueue[tuple[int, Subject] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Done | BaseException] = queue.SimpleQueue()

    def work() -> None:
        while (task := todo.get()) is not None and not stop.is_set():
            try:
                done.put(Done(*task, write(task[1])))
            except BaseException as error:
                done.put(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(concurrency)]
    for thread in threads:
        thread.start()

    def take() -> Done:
        found = done.get()
        if isinstance(found, BaseException):
            raise found
        return found

    try:
        waiting = 0
        for place, subject in enumerate(subjects):
            todo.put((place, subject))
            waiting += 1
            while waiting > _AHEAD + 2 * concurrency or (waiting and not done.empty()):
                yield take()
                waiting -= 1
        while waiting:
            yield take()
            waiting -= 1
    except KeyboardInterrupt:
        stop.set()
        raise
    except BaseException:
        stop.set()
        _dismiss(todo, threads)
        raise
    stop.set()
    _dismiss(todo, threads)


def _dismiss(todo: queue.SimpleQueue[tuple[int, Subject] | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        todo.put(None)
    for thread in threads:
        thread.join()
