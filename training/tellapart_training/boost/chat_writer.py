"""The generator that asks a language model: BlendCap from captions alone, HolisticCap with what is seen.

An answer that a check rejects is asked for again with the reason. When no try passes, the extractive blend
steps in and is marked so; when that fails too, the image has no caption and is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tellapart_training.boost.asking import Asker, NoAnswerError
from tellapart_training.boost.chat import Answer, Decoding, Message
from tellapart_training.boost.checks import Candidate, Checker
from tellapart_training.boost.extractive import Extractive
from tellapart_training.boost.outcome import Outcome, Written
from tellapart_training.boost.parsing import Parser, Sentence
from tellapart_training.boost.prompt import Prompt
from tellapart_training.boost.source import Subject
from tellapart_training.boost.vision import Seen, Vision

_THOUGHT = re.compile(r"(?is)\A\s*<think>.*?</think>")
_KEPT_OF_ANSWER = 600


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How captions are asked for.

    Attributes:
        generator: name under which they are counted.
        model: name of the model.
        blend: prompt for captions alone.
        fuse: prompt for captions and what is seen.
        decoding: how answers are drawn.
        per_image: captions for each image at most.
        tries: answers asked for one caption at most.
        max_words: that the prompts ask for.
        source: what else is known of the model: revision, hash, precision.
    """

    generator: str
    model: str
    blend: Prompt
    fuse: Prompt
    decoding: Decoding
    per_image: int = 1
    tries: int = 3
    max_words: int = 32
    source: Mapping[str, Any] = field(default_factory=dict)


class ChatWriter:
    """Writes captions with a language model; safe from many threads.

    Args:
        asker: of the model.
        recipe: prompts and limits.
        checker: rules that are on.
        parser: parses answers; safe from many threads.
        fallback: steps in when no answer passes.
        vision: what sees the photos; None for captions alone.
    """

    def __init__(
        self,
        asker: Asker,
        recipe: Recipe,
        *,
        checker: Checker,
        parser: Parser,
        fallback: Extractive,
        vision: Vision | None = None,
    ) -> None:
        self._asker, self._recipe, self._checker = asker, recipe, checker
        self._parser, self._fallback, self._vision = parser, fallback, vision

    def write(self, subject: Subject) -> Outcome:
        """What becomes of one image.

        Raises:
            BudgetError, BackendError, StoppedError: as `Asker.ask`.
        """
        image = subject.record.image
        outcome = Outcome(image, generator=self._recipe.generator)
        seen = Seen()
        if subject.sentences and self._vision is not None:
            seen = self._vision.see(subject, outcome.rejected)
        if not subject.sentences or (len(subject.texts) == 1 and not seen.statements):
            # Nothing can be merged: not worth a request.
            why = "one caption" if subject.sentences else ""
            return self._fall_back(subject, outcome, why, is_failure=False)
        prompt = self._recipe.fuse if seen.statements else self._recipe.blend
        asked = prompt.messages(
            captions=subject.texts, vision=seen.statements, max_words=self._recipe.max_words
        )
        statements = self._parser.parse(seen.statements)
        why = ""
        for number in range(self._recipe.per_image):
            decoding = replace(self._recipe.decoding, seed=self._recipe.decoding.seed + number)
            judge = _Judge(self, subject, statements, prompt, [one.text for one in outcome.captions])
            why = self._one(asked, decoding, judge, outcome) or why
        if not outcome.captions:
            return self._fall_back(subject, outcome, why, is_failure=True)
        outcome.details = {
            "model": self._recipe.model,
            "version": None,
            "prompt": prompt.record(),
            "decoding": self._recipe.decoding.fields(),
            **({"source": dict(self._recipe.source)} if self._recipe.source else {}),
            **self._seen(seen),
        }
        return outcome

    def _seen(self, seen: Seen) -> dict[str, Any]:
        if self._vision is None:
            return {}
        look = self._vision.look
        return {"vision": seen.record(), **({"looked": look.record()} if look is not None else {})}

    def _one(self, asked: Sequence[Message], decoding: Decoding, judge: _Judge, outcome: Outcome) -> str:
        """Add one caption to the outcome, or say which rule the last try broke."""
        messages, rule, said = list(asked), "", set()
        for _ in range(self._recipe.tries):
            try:
                answer = self._asker.ask(outcome.image, messages, decoding)
            except NoAnswerError as error:
                outcome.rejected["no answer"] += 1
                return f"no answer ({error.kind})"
            text = tidy(answer.text)
            rule, reason = judge.verdict(answer, text)
            if not rule:
                outcome.captions.append(Written(text))
                return ""
            outcome.rejected[rule] += 1
            if text in said:
                break  # it insists; more tries would cost more and say the same
            said.add(text)
            # Only the newest attempt is shown: a conversation that grows costs more each time.
            messages = [*asked, *_complaint(answer.text, reason)]
        return rule

    def _fall_back(self, subject: Subject, outcome: Outcome, why: str, *, is_failure: bool) -> Outcome:
        blend = self._fallback.write([subject])[0]
        blend.rejected.update(outcome.rejected)
        blend.fallback = is_failure
        if why:
            blend.details["instead_of"] = {"generator": self._recipe.generator, "why": why}
        return blend


class _Judge:
    """The checks of one image's answers."""

    def __init__(
        self,
        writer: ChatWriter,
        subject: Subject,
        statements: Sequence[Sentence],
        prompt: Prompt,
        written: Sequence[str],
    ) -> None:
        self._checker, self._parser = writer._checker, writer._parser
        self._subject, self._statements, self._prompt = subject, statements, prompt
        self._written = {text.lower() for text in written}

    def verdict(self, answer: Answer, text: str) -> tuple[str, str]:
        """The rule that an answer breaks, and why; ("", "") where it breaks none."""
        if answer.finish == "refusal":
            return "refusal", "it refuses to answer"
        if answer.finish == "length":
            return "cut off", "it is too long and was cut off"
        if text.lower() in self._written:
            return "repeat", "it says the same as an earlier caption of this scene; put it differently"
        sentence = self._parser.parse([text])[0]
        return self._checker.check(
            Candidate(
                text=text,
                sentence=sentence,
                humans=self._subject.sentences,
                vision=self._statements,
                prompt=f"{self._prompt.system}\n{self._prompt.user}",
                image=self._subject.record.image,
            )
        )


def tidy(text: str) -> str:
    """An answer without what wraps the sentence: thoughts, quotation marks; a stop is added where none is.

    A sentence is not changed: what is wrong inside it is for the checks.
    """
    text = _THOUGHT.sub("", text).strip()
    if len(text) > 2 and text[0] in "\"'\u201c`" and text[-1] in "\"'\u201d`":
        text = text.strip("\"'\u201c\u201d` ")
    if text and text[-1].isalnum():
        text += "."
    return text[:1].upper() + text[1:]


def _complaint(answer: str, reason: str) -> list[dict[str, Any]]:
    return [
        {"role": "assistant", "content": answer[:_KEPT_OF_ANSWER] or "..."},
        {
            "role": "user",
            "content": f"That cannot be used: {reason}. Write the sentence again without this "
            "fault, under the same "
            f"rules. Answer with the sentence alone.",
        },
    ]
