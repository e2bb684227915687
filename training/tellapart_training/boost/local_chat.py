"""A language model on this machine behind the same face as an endpoint: many threads ask, one batch answers.

Nothing is drawn at temperature 0. Above it each request has random numbers of its own, from its words and its
seed, so that an answer does not hang on which requests happen to share its batch.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tellapart.errors import BackendError, UsageError
from tellapart_training.boost.chat import Answer, Decoding, Fault, Message
from tellapart_training.boost.gather import Gather
from tellapart_training.boost.local_model import LocalModel


@dataclass(frozen=True)
class Request:
    """What a model goes on from, and how.

    Attributes:
        text: by the chat template; a mark of the model's stands where each photo is.
        decoding: how the answer is drawn.
        photos: files of images, in the order of their marks.
    """

    text: str
    decoding: Decoding
    photos: tuple[bytes, ...] = ()


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
        self._takes_system = model.has_template and self._shows_system()
        self._ends = model.ends if model.has_template else (*model.ends, *_line_ends(model.tokenizer))
        self._gather: Gather[Request, Answer | Fault] = Gather(self._answer, most=batch)

    def complete(self, messages: Sequence[Message], decoding: Decoding) -> Answer:
        """One answer of the model.

        Raises:
            Fault: the messages are longer than the model can read.
            BackendError: not even one answer at a time fits into memory, or a photo is shown to a model that
                reads text alone.
        """
        photos = tuple(photo for one in messages for photo in _photos(one["content"]))
        if photos and self._model.processor is None:
            raise BackendError(f"{self.name} reads text alone, and was shown a photo")
        found = self._gather([Request(self.render(messages), decoding, photos)])[0]
        if isinstance(found, Fault):
            raise found
        return found

    def render(self, messages: Sequence[Message]) -> str:
        """The messages as the model reads them: by its chat template, else one under the other."""
        turns: list[dict[str, Any]] = [
            {"role": str(one["role"]), "content": self._parts(one["content"])} for one in messages
        ]
        if not self._model.has_template:
            return "\n".join(_words(turn) for turn in turns) + "\n"
        if not self._takes_system and turns[0]["role"] == "system":
            said = {"type": "text", "text": f"{_words(turns[0])}\n\n{_words(turns[1])}"}
            shown = [part for part in turns[1]["content"] if part["type"] == "image"]
            turns = [{"role": "user", "content": [*shown, said]}, *turns[2:]]
        return self._by_template(turns)

    def _parts(self, content: str | Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """A message's photos, then its words: so these models were taught."""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        words = [{"type": "text", "text": self._plain(one["text"])} for one in parts if one["type"] == "text"]
        return [*({"type": "image"} for one in parts if one["type"] == "image_url"), *words]

    def _plain(self, text: str) -> str:
        # "</s>" in a caption would end the turn, and what follows would speak for somebody else.
        for mark in self._marks:
            text = text.replace(mark, " ")
        return text

    def _by_template(self, turns: Sequence[Mapping[str, Any]]) -> str:
        # Templates of models that see want parts, those of others plain words.
        if self._model.processor is None:
            turns = [{"role": turn["role"], "content": _words(turn)} for turn in turns]
        # A caption needs no thoughts; templates that know none ignore the word.
        return str(
            self._model.tokenizer.apply_chat_template(
                list(turns), chat_template=self._model.template, tokenize=False, add_generation_prompt=True,
                enable_thinking=False,
            )
        )  # fmt: skip

    def _shows_system(self) -> bool:
        turns = [
            {"role": role, "content": [{"type": "text", "text": f"{role}-part"}]}
            for role in ("system", "user")
        ]
        try:
            return "system-part" in self._by_template(turns)
        except Exception:  # templates refuse by an error of their own, of Jinja
            return False

    def _answer(self, requests: list[Request]) -> list[Answer | Fault]:
        found: list[Answer | Fault] = [Fault("not asked")] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, one in enumerate(requests):
            # A processor takes photos for all texts of a batch or for none.
            kind = f"{len(one.photos)} {replace(one.decoding, seed=0)!r}"
            groups.setdefault(kind, []).append(place)
        for places in groups.values():
            answers = self._write([requests[place] for place in places])
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        return found

    def _write(self, requests: Sequence[Request]) -> list[Answer | Fault]:
        """Answers to requests of one length and way of drawing; in halves where memory is short."""
        import torch

        if not requests:
            return []
        try:
            encoded = self._encode(requests)
        except Exception:  # a processor refuses photos of odd shapes, each by an error of its own
            if not requests[0].photos:
                raise
            if len(requests) == 1:
                return [Fault("photo refused", again=False)]
            return self._in_halves(requests)
        lengths = encoded["attention_mask"].sum(dim=1).tolist()
        room = self._model.room - requests[0].decoding.max_tokens
        if self._model.room and max(lengths) > room:
            fits = [length <= room for length in lengths]
            written = iter(self._write([one for one, fit in zip(requests, fits, strict=True) if fit]))
            return [
                next(written) if fit else Fault("longer than the model can read", again=False) for fit in fits
            ]
        try:
            return list(self._generate(requests, encoded))
        except torch.OutOfMemoryError as error:
            if len(requests) == 1:
                raise BackendError(
                    f"{self.name} does not fit into memory together with one answer: take a smaller model, "
                    f"fewer --max-tokens, or --device cpu"
                ) from error
        return self._in_halves(requests)

    def _in_halves(self, requests: Sequence[Request]) -> list[Answer | Fault]:
        half = len(requests) // 2
        return [*self._write(requests[:half]), *self._write(requests[half:])]

    def _encode(self, requests: Sequence[Request]) -> Any:
        """Ids of the texts, padded on the left, and pixels of their photos; on the CPU."""
        model, texts = self._model, [one.text for one in requests]
        if model.processor is None:
            return model.tokenizer(
                texts, return_tensors="pt", padding=True, add_special_tokens=not model.has_template,
                return_token_type_ids=False,
            )  # fmt: skip
        # As transformers' processors do: a template that writes the start mark itself needs no second one.
        start = model.tokenizer.bos_token
        marked = bool(start) and texts[0].startswith(start)
        shown = [[_opened(photo) for photo in one.photos] for one in requests]
        return model.processor(
            text=texts, return_tensors="pt", padding=True, add_special_tokens=not marked,
            **({"images": shown} if shown[0] else {}),
        )  # fmt: skip

    def _generate(self, requests: Sequence[Request], encoded: Any) -> list[Answer]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        tokenizer, network, decoding = self._model.tokenizer, self._model.network, requests[0].decoding
        config = GenerationConfig(
            max_new_tokens=decoding.max_tokens, do_sample=False, eos_token_id=list(self._ends),
            pad_token_id=tokenizer.pad_token_id, **decoding.extra,
        )  # fmt: skip
        processors = LogitsProcessorList([_draws(requests)] if decoding.temperature > 0 else [])
        inputs = {
            name: tensor.to(network.device, network.dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in encoded.items()
        }
        with torch.inference_mode():
            rows = network.generate(**inputs, generation_config=config, logits_processor=processors)
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


def _words(turn: Mapping[str, Any]) -> str:
    return "\n\n".join(part["text"] for part in turn["content"] if part["type"] == "text")


def _photos(content: str | Sequence[Mapping[str, Any]]) -> list[bytes]:
    """The files of a message's photos, which travel in it as an endpoint takes them."""
    if isinstance(content, str):
        return []
    uris = [one["image_url"]["url"] for one in content if one["type"] == "image_url"]
    return [base64.b64decode(uri.partition(",")[2]) for uri in uris]


def _opened(photo: bytes) -> Any:
    from PIL import Image

    with Image.open(io.BytesIO(photo)) as picture:
        return picture.convert("RGB")


def _line_ends(tokenizer: Any) -> tuple[int, ...]:
    """Ids of all tokens that end a line: a model that knows no chat would go on with the next one."""
    return tuple(one for one in range(len(tokenizer)) if "\n" in tokenizer.decode([one]))


def _draws(requests: Sequence[Request]) -> Any:
    """Sampling as an argmax: the largest of logits and Gumbel noise is a draw from their softmax."""
    import torch
    from transformers import LogitsProcessor, TopPLogitsWarper

    decoding = requests[0].decoding
    warp = TopPLogitsWarper(decoding.top_p) if decoding.top_p < 1 else None
    generators = [torch.Generator().manual_seed(_seed(one)) for one in requests]

    class Draws(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.float() / decoding.temperature
            if warp is not None:
                scores = warp(input_ids, scores)
            uniform = torch.stack([torch.rand(scores.shape[1], generator=one) for one in generators])
            return scores - torch.log(-torch.log(uniform)).to(scores.device)

    return Draws()


def _seed(request: Request) -> int:
    whole = hashlib.sha256(f"{request.decoding.seed} {request.text}".encode())
    for photo in request.photos:
        whole.update(photo)
    return int.from_bytes(whole.digest()[:7], "big")
