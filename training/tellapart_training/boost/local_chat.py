"""A language model on this machine behind the same face as an endpoint: many threads ask, one batch answers.

Nothing is drawn at temperature 0. Above it each request has random numbers of its own, from its words and its
seed, so that an answer does not hang on which requests happen to share its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from tellapart.errors import BackendError, UsageError
from tellapart_training.boost.chat import Answer, Decoding, Fault, Message
from tellapart_training.boost.gather import Gather
from tellapart_training.boost.local_model import LocalModel

Request: TypeAlias = tuple[str, Decoding]
"""The text that the model goes on from, and how."""

EXTRA = ("num_beams", "repetition_penalty", "no_repeat_ngram_size")
"""What `--extra` may set; everything else has an option or would not be deterministic."""


def check_extra(extra: Mapping[str, Any], *, samples: bool) -> None:
    """Refuse settings that a local model does not take.

    Raises:
        UsageError: says which.
    """
    unknown = sorted(set(extra) - set(EXTRA))
    if unknown:
        raise UsageError(f"--extra {unknown[0]}: a local model takes {', '.join(EXTRA)}")
    for name, value in extra.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise UsageError(f"--extra {name} must be a number from 0, got {value!r}")
    if samples and extra.get("num_beams", 1) != 1:
        raise UsageError(
            "--extra num_beams looks for the likeliest answer, --temperature draws one: give one"
        )


class LocalChat:
    """Answers messages with a model on this machine; safe from many threads.

    Args:
        model: opened; see `local_model.open_model`.
        batch: requests that are answered side by side.
    """

    def __init__(self, model: LocalModel, *, batch: int) -> None:
        self.name = f"{model.name}@{model.sha256[:16]}"
        self._model = model
        self._marks = tuple(
            sorted({*model.tokenizer.all_special_tokens, *model.tokenizer.get_added_vocab()}, key=len)
        )[::-1]
        self._takes_system = model.has_template and _takes_system(model.tokenizer)
        self._ends = model.ends if model.has_template else (*model.ends, *_line_ends(model.tokenizer))
        self._gather: Gather[Request, Answer | Fault] = Gather(self._answer, most=batch)

    def complete(self, messages: Sequence[Message], decoding: Decoding) -> Answer:
        """One answer of the model.

        Raises:
            Fault: the messages are longer than the model can read.
            BackendError: not even one answer at a time fits into memory.
        """
        found = self._gather([(self.render(messages), decoding)])[0]
        if isinstance(found, Fault):
            raise found
        return found

    def render(self, messages: Sequence[Message]) -> str:
        """The messages as the model reads them: by its chat template, else one under the other."""
        turns = [{"role": str(one["role"]), "content": self._plain(one["content"])} for one in messages]
        if not self._model.has_template:
            return "\n".join(turn["content"] for turn in turns) + "\n"
        if not self._takes_system and turns[0]["role"] == "system":
            joined = f"{turns[0]['content']}\n\n{turns[1]['content']}"
            turns = [{"role": "user", "content": joined}, *turns[2:]]
        return _render(self._model.tokenizer, turns)

    def _plain(self, content: str) -> str:
        # "</s>" in a caption would end the turn, and what follows would speak for somebody else.
        for mark in self._marks:
            content = content.replace(mark, " ")
        return content

    def _answer(self, requests: list[Request]) -> list[Answer | Fault]:
        found: list[Answer | Fault] = [Fault("not asked")] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, (text, decoding) in enumerate(requests):
            length = len(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])
            if self._model.room and length + decoding.max_tokens + 2 > self._model.room:
                found[place] = Fault("longer than the model can read", again=False)
            else:
                groups.setdefault(repr(replace(decoding, seed=0)), []).append(place)
        for places in groups.values():
            answers = self._write([requests[place] for place in places])
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        return found

    def _write(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers to requests that differ in text and seed alone; in halves where memory is short."""
        import torch

        try:
            return self._generate(requests)
        except torch.OutOfMemoryError as error:
            if len(requests) == 1:
                raise BackendError(
                    f"{self.name} does not fit into memory together with one answer: take a smaller model, "
                    f"fewer --max-tokens, or --device cpu"
                ) from error
        half = len(requests) // 2
        return [*self._write(requests[:half]), *self._write(requests[half:])]

    def _generate(self, requests: Sequence[Request]) -> list[Answer]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        tokenizer, network, decoding = self._model.tokenizer, self._model.network, requests[0][1]
        encoded = tokenizer(
            [text for text, _ in requests],
            return_tensors="pt",
            padding=True,
            add_special_tokens=not self._model.has_template,
            return_token_type_ids=False,
        ).to(network.device)
        config = GenerationConfig(
            max_new_tokens=decoding.max_tokens, do_sample=False, eos_token_id=list(self._ends),
            pad_token_id=tokenizer.pad_token_id, **decoding.extra,
        )  # fmt: skip
        processors = LogitsProcessorList([_draws(requests)] if decoding.temperature > 0 else [])
        with torch.inference_mode():
            rows = network.generate(**encoded, generation_config=config, logits_processor=processors)
        read = encoded["input_ids"].shape[1]
        lengths = encoded["attention_mask"].sum(dim=1).tolist()
        return [
            self._read(row[read:].tolist(), int(length))
            for row, length in zip(rows, lengths, strict=True)
        ]  # fmt: skip

    def _read(self, ids: Sequence[int], asked_tokens: int) -> Answer:
        end = next((place for place, one in enumerate(ids) if one in self._ends), None)
        text = self._model.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return Answer(
            text.strip(),
            "length" if end is None else "stop",
            asked_tokens,
            len(ids) if end is None else end + 1,
        )


def _render(tokenizer: Any, turns: Sequence[Mapping[str, str]]) -> str:
    # A caption needs no thoughts; templates that know none ignore the word.
    return str(
        tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    )


def _takes_system(tokenizer: Any) -> bool:
    turns = [{"role": "system", "content": "system-part"}, {"role": "user", "content": "user-part"}]
    try:
        return "system-part" in _render(tokenizer, turns)
    except Exception:  # templates refuse by an error of their own, of Jinja
        return False


def _line_ends(tokenizer: Any) -> tuple[int, ...]:
    """Ids of all tokens that end a line: a model that knows no chat would go on with the next one."""
    return tuple(one for one in range(len(tokenizer)) if "\n" in tokenizer.decode([one]))


def _draws(requests: Sequence[Request]) -> Any:
    """Sampling as an argmax: the largest of logits and Gumbel noise is a draw from their softmax."""
    import torch
    from transformers import LogitsProcessor, TopPLogitsWarper

    decoding = requests[0][1]
    warp = TopPLogitsWarper(decoding.top_p) if decoding.top_p < 1 else None
    generators = [torch.Generator().manual_seed(_seed(text, one.seed)) for text, one in requests]

    class Draws(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.float() / decoding.temperature
            if warp is not None:
                scores = warp(input_ids, scores)
            uniform = torch.stack([torch.rand(scores.shape[1], generator=one) for one in generators])
            return scores - torch.log(-torch.log(uniform)).to(scores.device)

    return Draws()


def _seed(text: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:7], "big")
