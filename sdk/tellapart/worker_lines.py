"""What a worker process and its owner say to each other: lines of JSON, images and results among them.

JSON and not pickle, so that neither side can make the other run anything. Arrays travel as base64.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from tellapart import errors
from tellapart.image import check_pixels, load_image
from tellapart.types import (
    BagResult,
    Caption,
    DecodeOptions,
    ImageInput,
    RuntimeOptions,
    UnsureCaption,
)

__all__ = [
    "bag_from",
    "caption_from",
    "error_from",
    "image_from",
    "options_from",
    "runtime_from",
    "to_bag",
    "to_caption",
    "to_error",
    "to_image",
    "to_options",
]


def to_image(image: ImageInput) -> dict[str, Any]:
    """An image as JSON values; a path stays a path, made absolute."""
    if isinstance(image, (str, os.PathLike)):
        return {"path": os.path.abspath(os.fspath(image))}
    if isinstance(image, bytes):
        return {"bytes": base64.b64encode(image).decode("ascii")}
    pixels = image if isinstance(image, np.ndarray) else load_image(image)
    check_pixels(pixels)
    content = base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode("ascii")
    return {"pixels": content, "shape": list(pixels.shape)}


def image_from(record: Mapping[str, Any]) -> ImageInput:
    """The image again."""
    if "path" in record:
        return str(record["path"])
    if "bytes" in record:
        return base64.b64decode(record["bytes"])
    content = base64.b64decode(record["pixels"])
    return np.frombuffer(content, np.uint8).reshape(record["shape"])


def to_options(options: DecodeOptions | RuntimeOptions | None) -> dict[str, Any]:
    """Options as JSON values."""
    return {} if options is None else asdict(options)


def options_from(record: Mapping[str, Any]) -> DecodeOptions:
    """Decoding options again."""
    return DecodeOptions(**record)


def runtime_from(record: Mapping[str, Any]) -> RuntimeOptions:
    """Runtime options again."""
    return RuntimeOptions(**record)


def to_caption(caption: Caption) -> dict[str, Any]:
    """A caption as JSON values."""
    record = {item.name: getattr(caption, item.name) for item in fields(Caption)}
    record["alternatives"] = [to_caption(other) for other in caption.alternatives]
    record["elapsed_ms"] = dict(caption.elapsed_ms)
    return {**record, "unsure": isinstance(caption, UnsureCaption)}


def caption_from(record: Mapping[str, Any]) -> Caption:
    """The caption again."""
    values = dict(record)
    kind = UnsureCaption if values.pop("unsure") else Caption
    values["token_ids"] = tuple(values["token_ids"])
    values["alternatives"] = tuple(caption_from(other) for other in values["alternatives"])
    return kind(**values)


def to_bag(result: BagResult) -> dict[str, Any]:
    """A bag's result as JSON values."""
    return {
        "captions": [to_caption(caption) for caption in result.captions],
        "ranks": list(result.ranks),
        "margins": list(result.margins),
        "similarity": result.similarity.tolist(),
        "recall_at_1": result.recall_at_1,
    }


def bag_from(record: Mapping[str, Any]) -> BagResult:
    """The bag's result again."""
    return BagResult(
        captions=tuple(caption_from(caption) for caption in record["captions"]),
        ranks=tuple(record["ranks"]),
        margins=tuple(record["margins"]),
        similarity=np.array(record["similarity"], np.float32),
        recall_at_1=record["recall_at_1"],
    )


def to_error(error: errors.TellapartError) -> dict[str, Any]:
    """An error as JSON values."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "image": getattr(error, "image", ""),
        "bundle": getattr(error, "bundle", ""),
        "extra": getattr(error, "extra", ""),
        "reason": getattr(error, "reason", ""),
    }


def error_from(record: Mapping[str, Any]) -> errors.TellapartError:
    """The error again, of its own kind; one that this version does not know is a TellapartError."""
    kind: Any = getattr(errors, record["type"], errors.TellapartError)
    if not (isinstance(kind, type) and issubclass(kind, errors.TellapartError)):
        kind = errors.TellapartError
    if issubclass(kind, errors.MissingExtraError):
        return errors.MissingExtraError(record["extra"], record["reason"])
    named = {}
    if issubclass(kind, errors.ImageError):
        named = {"image": record["image"]}
    elif issubclass(kind, errors.BundleError):
        named = {"bundle": record["bundle"]}
    error: errors.TellapartError = kind(record["message"], **named)
    return error
