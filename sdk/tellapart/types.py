"""Options that go in and results that come out: frozen dataclasses that check themselves.

Letters in shapes: b batch, L decoder layers, H heads, N image tokens, D width of a head, E width of an
embedding, k images in a bag.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tellapart.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

FloatArray: TypeAlias = npt.NDArray[np.float32]
"""float32 array; the docstring at hand gives its shape."""

IntArray: TypeAlias = npt.NDArray[np.int64]
"""int64 array of token ids or positions."""

PixelArray: TypeAlias = npt.NDArray[np.uint8]
"""uint8 array, usually (h, w, 3), RGB, upright."""

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | PILImage | npt.NDArray[np.uint8]"
"""A path, the bytes of an image file, a PIL image, or a (h, w, 3) uint8 RGB array."""

BACKENDS = ("auto", "onnxruntime", "openvino", "coreml")
"""Values that `RuntimeOptions.backend` takes."""


def _check_int(name: str, value: Any, *, least: int, optional: bool) -> None:
    if value is None and optional:
        return
    # bool is an int to Python; beams=True is a slip all the same.
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        wanted = f"an integer of at least {least}" + (" or None" if optional else "")
        raise UsageError(f"{name} must be {wanted}, got {value!r}")


def _check_number(
    name: str,
    value: Any,
    *,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
    optional: bool = False,
) -> None:
    if value is None and optional:
        return
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < low or value > high or (open_low and value == low):
        bound = f"above {low:g}" if open_low else f"at least {low:g}"
        top = "" if high == math.inf else f" and at most {high:g}"
        wanted = f"a finite number {bound}{top}" + (" or None" if optional else "")
        raise UsageError(f"{name} must be {wanted}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How a caption is searched for. None means: as the bundle's manifest says.

    Raises:
        UsageError: a field out of its range, or two fields that exclude each other.
    """

    max_new_tokens: int | None = None
    """Most pieces a caption may have, its end mark not counted."""

    min_new_tokens: int | None = None
    """Fewest pieces before the end mark is allowed."""

    beams: int | None = None
    """Beams kept side by side; 1 is greedy search."""

    length_penalty: float | None = None
    """A finished beam's score is its log-probability divided by length to this power."""

    rerank: float | None = None
    """Weight of the bundle's own retriever in choosing among the beams (or samples): the caption with the
    largest mean log-probability + `rerank` x cosine with the image comes first. 0 takes the likeliest."""

    no_repeat_ngram: int | None = None
    """No run of this many pieces comes twice in a caption; 0 allows repeats."""

    guidance: float = 1.0
    """1 is the model as it speaks. Above 1, words count for more that are likelier with the image than
    without: captions get more specific and less like those of people; see `tellapart.guidance`. Anything but
    1 decodes two rows for each."""

    temperature: float = 0.0
    """0 searches for the likeliest caption; above 0 samples, and then `beams` must be 1 or None."""

    top_p: float = 1.0
    """When sampling: the smallest set of pieces whose chances reach this sum, in (0, 1]."""

    seed: int | None = None
    """When sampling: equal seeds give equal captions; None draws a fresh seed."""

    n_best: int = 1
    """Captions wanted; those after the first are in `Caption.alternatives`."""

    min_confidence: float | Literal["default"] | None = None
    """A caption whose confidence is below this, in [0, 1], comes back as an `UnsureCaption`; "default" is the
    bundle's own threshold, which nine of ten photos reach. None makes no such difference."""

    confidence: bool = True
    """Give captions their confidence, where the bundle carries a calibration; costs one pass of the text
    graph where the retriever had no say in the caption."""

    deadline_ms: float | None = None
    """Milliseconds for decoding; when they are over, the best so far comes back with `truncated`."""

    def __post_init__(self) -> None:
        """Check every field, then the rules between fields."""
        _check_int("max_new_tokens", self.max_new_tokens, least=1, optional=True)
        _check_int("min_new_tokens", self.min_new_tokens, least=0, optional=True)
        _check_int("beams", self.beams, least=1, optional=True)
        _check_number("length_penalty", self.length_penalty, low=0.0, optional=True)
        _check_number("rerank", self.rerank, low=0.0, optional=True)
        _check_int("no_repeat_ngram", self.no_repeat_ngram, least=0, optional=True)
        _check_number("guidance", self.guidance, low=0.0)
        _check_number("temperature", self.temperature, low=0.0)
        _check_number("top_p", self.top_p, low=0.0, high=1.0, open_low=True)
        _check_int("seed", self.seed, least=0, optional=True)
        _check_int("n_best", self.n_best, least=1, optional=False)
        if self.min_confidence != "default":
            _check_number("min_confidence", self.min_confidence, low=0.0, high=1.0, optional=True)
        if not self.confidence and self.min_confidence is not None:
            raise UsageError("min_confidence needs the confidence; leave confidence=False out")
        _check_number("deadline_ms", self.deadline_ms, low=0.0, open_low=True, optional=True)
        longest, fewest = self.max_new_tokens, self.min_new_tokens
        if longest is not None and fewest is not None and fewest > longest:
            raise UsageError(
                f"min_new_tokens ({fewest}) is above max_new_tokens ({longest}); "
                "lower the one or raise the other"
            )
        if self.temperature > 0 and self.beams not in (None, 1):
            raise UsageError(
                f"temperature={self.temperature:g} samples and beams={self.beams} searches; "
                "use beams=1 to sample or temperature=0 to search"
            )
        if self.temperature == 0:
            if self.top_p != 1.0:
                raise UsageError(f"top_p={self.top_p:g} only matters when sampling; set temperature above 0")
            if self.seed is not None:
                raise UsageError(f"seed={self.seed} only matters when sampling; set temperature above 0")
            if self.beams is not None and self.n_best > self.beams:
                raise UsageError(
                    f"n_best={self.n_best} captions cannot come out of beams={self.beams}; "
                    "raise beams to n_best"
                )


def _check_settings(value: Any, providers: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """A copy of `RuntimeOptions.provider_options`."""
    if not isinstance(value, Mapping) or not all(
        isinstance(options, Mapping)
        and all(isinstance(key, str) and key and isinstance(text, str) for key, text in options.items())
        for options in value.values()
    ):
        raise UsageError(f"provider_options must be {{provider: {{key: value}}}}, all texts, got {value!r}")
    strange = [name for name in value if name not in providers]
    if strange:
        raise UsageError(
            f"provider_options has {strange[0]!r}, which is not among the providers asked for "
            f"({', '.join(providers) or 'none'}); name it there, too"
        )
    return {name: dict(options) for name, options in value.items()}


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where and with what the graphs run.

    Raises:
        UsageError: a field out of its range.
    """

    backend: Literal["auto", "onnxruntime", "openvino", "coreml"] = "auto"
    """"auto" takes the first that is installed and can run the bundle, and logs the reason at INFO."""

    providers: tuple[str, ...] = ()
    """What computes, by name: execution providers of onnxruntime in order, one device of OpenVINO, or one of
    Core ML's compute units. What was asked for is used or is an error."""

    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict, hash=False)
    """Settings of what is in `providers`, by its name, key and value as the runtime spells them; for example
    {"TensorrtExecutionProvider": {"trt_engine_cache_enable": "True"}}. Core ML has none."""

    threads: int | Literal["auto"] = "auto"
    """Threads for one image: inside the vision graph, inside the decoder, and for several texts at once.
    "auto" takes for each graph what `tellapart doctor` measured on this machine; where it did not, the
    physical cores, at most four, and one for a decoder too small to share (below 32 MiB)."""

    spin: bool = False
    """True lets the threads of a graph wait for each other by spinning while it runs, never between runs.
    On two cores with nothing else to do vision took a quarter less time, with other work on them more."""

    idle_unload_s: float | None = None
    """Seconds without use after which graphs are let go, and most of their memory with them; the next use
    opens them again. None keeps them until `close`. Only the end of a process gives all memory back, see
    `WorkerCaptioner`."""

    max_image_megapixels: float | None = None
    """Largest image, in millions of pixels by its header; None reads the environment variable
    TELLAPART_MAX_MEGAPIXELS and falls back to 50."""

    def __post_init__(self) -> None:
        """Check every field; a list of providers becomes a tuple."""
        if self.backend not in BACKENDS:
            raise UsageError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if isinstance(self.providers, str) or not all(
            isinstance(name, str) and name for name in self.providers
        ):
            raise UsageError(f"providers must be a sequence of provider names, got {self.providers!r}")
        object.__setattr__(self, "providers", tuple(self.providers))
        object.__setattr__(self, "provider_options", _check_settings(self.provider_options, self.providers))
        if self.threads != "auto":
            _check_int("threads", self.threads, least=1, optional=False)
        if not isinstance(self.spin, bool):
            raise UsageError(f"spin must be True or False, got {self.spin!r}")
        _check_number("idle_unload_s", self.idle_unload_s, low=0.0, open_low=True, optional=True)
        _check_number(
            "max_image_megapixels", self.max_image_megapixels, low=0.0, open_low=True, optional=True
        )


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption and what is known about it."""

    text: str
    """The sentence as shown: first letter large, no final stop."""

    token_ids: tuple[int, ...]
    """Ids of the pieces, without start and end marks."""

    mean_logprob: float
    """Mean natural-log probability per piece, the end mark counted where it came; at most 0. It is the
    model's own for the image, whatever guidance or contrast made of it in the search."""

    confidence: float | None = None
    """Calibrated chance in [0, 1] that the caption finds its own image among 100 photos drawn at random, by
    the bundle's own retriever (or as many as the bundle's `confidence.among` says). Fitted on photos that no
    training saw, with images that are no photos counted as misses, for the bundle's own decoding defaults;
    for other options and in bags an estimate. None for `alternatives`, and where the bundle carries no
    calibration."""

    truncated: bool = False
    """True where the end mark never came: the length limit or the deadline cut the caption."""

    elapsed_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds per stage."""

    alternatives: tuple[Caption, ...] = ()
    """The next best captions, best first, where `n_best` asked for them."""


@dataclass(frozen=True, kw_only=True)
class UnsureCaption(Caption):
    """A caption whose confidence is below `DecodeOptions.min_confidence`: not to be told as a fact."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BagResult:
    """Captions of a bag of k images that should tell them apart; row = caption, column = image."""

    captions: tuple[Caption, ...]
    """One per image, in the order of the images."""

    ranks: tuple[int, ...]
    """Place of the own image for each caption among the k, 1 is best; ties count against us."""

    margins: tuple[float, ...]
    """Cosine with the own image minus the best other cosine, per caption; above 0 is told apart."""

    similarity: FloatArray
    """(k, k) float32, row = caption, column = image, cosine in [-1, 1]."""

    recall_at_1: float
    """Share of captions of rank 1, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One image after one vision pass, made by `Captioner.look`; goes wherever an image goes."""

    cross_kv: FloatArray
    """(2L, 1, H, N, D) float32; in axis 0, 2l holds keys and 2l+1 values of layer l. N is 0 where the bundle
    is a retriever alone."""

    embedding: FloatArray
    """(1, E) float32, unit length; E is 0 where the bundle is a captioner alone."""

    elapsed_ms: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds per stage of the vision pass."""

    bundle_sha256: str = ""
    """Hash of the manifest of the bundle that looked; a View is of no use to another bundle."""
