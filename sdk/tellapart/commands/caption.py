"""`tellapart caption`: images and folders in, captions out, one failure never stopping the rest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tellapart.backends.threads import count_workers
from tellapart.captioner import Captioner
from tellapart.commands.choices import decode_options, find_images, runtime_options
from tellapart.commands.outputs import CaptionSink, JsonLinesFile, JsonOut, Lines, Sidecars, say
from tellapart.commands.progress import Progress
from tellapart.errors import ImageError, UsageError
from tellapart.types import DecodeOptions

__all__ = ["run"]

_FEW = 4
"""Below so many images all cores work on one after the other."""


def run(args: argparse.Namespace) -> int:
    """Caption; 1 where at least one image failed.

    Raises:
        TellapartError: what concerns no single image: usage, the bundle, the runtime.
    """
    _check(args)
    options = decode_options(args)
    images = find_images(args.paths)
    runtime, workers = runtime_options(args), _workers(args, images)
    if workers > 1 and runtime.threads == "auto":
        runtime = replace(runtime, threads=1)  # a core for each image beats several for one
    with Captioner.open(args.model, runtime=runtime) as captioner:
        if args.stream:
            return _stream(captioner, images, options)
        if args.jsonl is not None and args.jsonl.resolve() in {image.resolve() for image in images}:
            raise UsageError(f"--jsonl {args.jsonl} is one of the images; name another file")
        sink = _sink(args, captioner.bundle.sha256)
        pending = sink.pending(images)
        if len(pending) < len(images):
            say(f"{len(images) - len(pending)} of {len(images)} images were done before")
        # Lines that scroll past on the same terminal are progress enough.
        scrolling = (args.json or isinstance(sink, Lines)) and sys.stdout.isatty()
        failed = 0
        with Progress(len(pending), quiet=scrolling) as progress:
            results = captioner.caption_many(
                pending, batch_size=args.batch_size, workers=workers, options=options, on_error="yield"
            )
            for image, result in zip(pending, results, strict=True):
                progress.clear()
                if isinstance(result, ImageError):
                    failed += 1
                    say(f"{image}: {type(result).__name__}: {result}")
                    sink.failure(image, result)
                else:
                    sink.caption(image, result)
                progress.advance(failed=isinstance(result, ImageError))
        if len(images) > 1:
            say(f"{len(pending) - failed} captioned, {failed} failed, {progress.elapsed_s:.1f} s")
    return 1 if failed else 0


def _check(args: argparse.Namespace) -> None:
    keeps = args.jsonl is not None or args.sidecar is not None
    if (args.resume or args.overwrite) and not keeps:
        raise UsageError("--resume and --overwrite go with --jsonl FILE or --sidecar, which keep captions")
    if args.resume and args.overwrite:
        raise UsageError("--resume keeps what is there and --overwrite replaces it; give one of them")
    if args.stream and args.n_best > 1:
        raise UsageError("--stream shows one caption as it grows; leave --n-best out")
    for option, value in (("--batch-size", args.batch_size), ("--workers", args.workers)):
        if value is not None and value < 1:
            raise UsageError(f"{option} must be an integer of at least 1, got {value}")


def _workers(args: argparse.Namespace, images: Sequence[Path]) -> int:
    """Images to have under way at once."""
    if args.workers is not None:
        return int(args.workers)
    if len(images) < _FEW or args.threads != "auto" or args.stream:
        return 1
    return min(count_workers(), len(images))


def _sink(args: argparse.Namespace, model: str) -> CaptionSink:
    if args.jsonl is not None:
        return JsonLinesFile(args.jsonl, model=model, resume=args.resume, overwrite=args.overwrite)
    if args.sidecar is not None:
        return Sidecars(args.sidecar, model=model, resume=args.resume, overwrite=args.overwrite)
    return JsonOut() if args.json else Lines()


def _stream(captioner: Captioner, images: list[Path], options: DecodeOptions) -> int:
    failed = 0
    for image in images:
        started = False
        try:
            for piece in captioner.stream(image, options=options):
                print(piece if started else f"{image}: {piece}", end="", flush=True)
                started = True
        except ImageError as error:
            failed += 1
            say(f"{image}: {type(error).__name__}: {error}")
        if started:
            print(flush=True)
    return 1 if failed else 0
