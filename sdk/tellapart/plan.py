"""What decoding is to do: the caller's options, completed by the bundle's defaults."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from tellapart.decode import Rules
from tellapart.errors import UsageError
from tellapart.manifest import Decoding
from tellapart.manifest_confidence import Calibration
from tellapart.tokenizer import Tokenizer
from tellapart.types import DecodeOptions


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """Options without gaps."""

    rules: Rules
    """Without a deadline; see `rules_from_now`."""

    beams: int
    n_best: int
    rerank: float
    guidance: float
    temperature: float
    top_p: float
    seed: int | None
    deadline_ms: float | None
    min_confidence: float | None
    calibration: Calibration | None
    """None: no confidence is wanted, or the bundle has none."""

    @property
    def candidates(self) -> int:
        """Captions of an image to search for: all beams where the retriever chooses among them."""
        return max(self.beams, self.n_best) if self.rerank else self.n_best

    def rules_from_now(self) -> Rules:
        """The rules, the deadline counted from this moment."""
        if self.deadline_ms is None:
            return self.rules
        return replace(self.rules, deadline_s=time.monotonic() + self.deadline_ms / 1000.0)

    def generator(self, number: int) -> np.random.Generator:
        """The source of chance for the caption `number` of an image.

        It knows the seed and the number, and not the image's place: an image gets the same caption alone and
        in any batch.
        """
        return np.random.default_rng(None if self.seed is None else [self.seed, number])


def make_plan(
    options: DecodeOptions | None,
    decoding: Decoding,
    tokenizer: Tokenizer,
    calibration: Calibration | None = None,
) -> DecodePlan:
    """Complete options by a bundle's defaults; a default gives way where it would contradict an option.

    Args:
        options: the caller's; None is all defaults.
        decoding: the bundle's.
        tokenizer: knows the special ids.
        calibration: the bundle's, None where it has none.

    Raises:
        UsageError: a least confidence of a bundle without calibration.
    """
    options = options or DecodeOptions()
    least = options.min_confidence
    if least is not None and calibration is None:
        raise UsageError(
            f"min_confidence={least} needs a bundle with a calibrated confidence, and this one has none; "
            "leave it out, or calibrate the bundle: tellapart calibrate"
        )
    longest = decoding.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens
    fewest = decoding.min_new_tokens if options.min_new_tokens is None else options.min_new_tokens
    if options.max_new_tokens is None:
        longest = max(longest, fewest)
    fewest = min(fewest, longest)
    beams = decoding.beams if options.beams is None else options.beams
    beams = 1 if options.temperature > 0 else max(beams, options.n_best)
    penalty = decoding.length_penalty if options.length_penalty is None else options.length_penalty
    rerank = decoding.rerank if options.rerank is None else options.rerank
    ngram = decoding.no_repeat_ngram if options.no_repeat_ngram is None else options.no_repeat_ngram
    # GPT-2 has one mark for start, end and padding, and the end has to stay allowed.
    banned = {tokenizer.pad_id, tokenizer.unknown_id, tokenizer.start_id} - {tokenizer.end_id}
    rules = Rules(
        start_id=tokenizer.start_id,
        end_id=tokenizer.end_id,
        banned_ids=tuple(sorted(banned)),
        max_new_tokens=longest,
        min_new_tokens=fewest,
        no_repeat_ngram=ngram,
        length_penalty=penalty,
    )
    return DecodePlan(
        rules=rules,
        beams=beams,
        n_best=options.n_best,
        rerank=rerank,
        guidance=float(options.guidance),
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        deadline_ms=options.deadline_ms,
        min_confidence=calibration.threshold if calibration and least == "default" else _number(least),
        calibration=calibration if options.confidence else None,
    )


def greedy_plan(options: DecodeOptions | None, decoding: Decoding, tokenizer: Tokenizer) -> DecodePlan:
    """As `make_plan`, for captions that are handed out while they grow.

    Raises:
        UsageError: options that only know their caption at the end.
    """
    options = options or DecodeOptions()
    if options.min_confidence is not None:
        raise UsageError("a confidence is known when the caption is whole; use caption with min_confidence")
    if options.beams not in (None, 1) or options.n_best != 1 or options.temperature > 0:
        raise UsageError(
            f"stream is greedy, got beams={options.beams}, n_best={options.n_best}, "
            f"temperature={options.temperature:g}; leave these out, or use caption"
        )
    return replace(make_plan(options, decoding, tokenizer), beams=1)


def _number(value: float | str | None) -> float | None:
    return None if value is None else float(value)
