"""From what argparse read to what the library takes: options, and the list of images."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from tellapart.errors import UsageError
from tellapart.search import IMAGE_SUFFIXES, list_images
from tellapart.types import DecodeOptions, RuntimeOptions

__all__ = ["decode_options", "find_images", "runtime_options"]


def runtime_options(args: argparse.Namespace) -> RuntimeOptions:
    """The runtime asked for.

    Raises:
        UsageError: a value out of its range.
    """
    return RuntimeOptions(
        backend=args.backend,
        providers=tuple(args.provider),
        provider_options=_provider_options(args.provider_option),
        threads=args.threads,
        spin=args.spin,
        max_image_megapixels=getattr(args, "max_megapixels", None),
    )


def _provider_options(given: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--provider-option takes a name and KEY=VALUE, got {name} {text!r}")
        found.setdefault(name, {})[key] = value
    return found


def decode_options(args: argparse.Namespace) -> DecodeOptions:
    """The decoding asked for; what was not said stays None, which means: as the bundle says.

    Raises:
        UsageError: a value out of its range, or two that exclude each other.
    """
    return DecodeOptions(
        beams=args.beams,
        max_new_tokens=args.max_new_tokens,
        length_penalty=args.length_penalty,
        rerank=args.rerank,
        guidance=args.guidance,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        deadline_ms=args.deadline_ms,
        min_confidence=getattr(args, "min_confidence", None),
        n_best=getattr(args, "n_best", None) or 1,
    )


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Files as they were named; for a folder every image in it and below it, in order of the path.

    What counts as an image in a folder is `search.list_images`'s to say; a file that is named itself is tried
    whatever it is called. A file that comes twice is taken once, and whether it can be read shows later, when
    its turn comes.

    Raises:
        UsageError: a folder without an image.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            names = list_images(path)
            if not names:
                known = " ".join(sorted(IMAGE_SUFFIXES))
                raise UsageError(f"no image in the folder {path}; looked for {known}")
            found.update((path / name, None) for name in names)
        else:
            found[path] = None
    return list(found)
