"""`python -m tellapart_coreml BUNDLE`, on a Mac: does Core ML compute what was proved elsewhere?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.backends import Session, open_session
from tellapart.backends.coreml import UNITS
from tellapart.backends.fixed_shapes import Run
from tellapart.bundle import Bundle, open_bundle
from tellapart.captioner import Captioner
from tellapart.errors import MissingExtraError, ParityError, TellapartError, UsageError
from tellapart.manifest import GraphSpec
from tellapart.search import list_images
from tellapart.types import DecodeOptions, RuntimeOptions
from tellapart_coreml.session import open_elsewhere

LEAST_COSINE = 0.999
LARGEST_GAP = 5e-2
"""As a share of the largest value (or of 1): float16 with sums in another order."""

LEAST_EQUAL = 0.5
"""Share of photos whose captions have to be the same: float16 decides draws in its own way, and no more."""


def prove_bundle(bundle: Bundle, device: Callable[[str], Session], *, rounds: int = 4) -> dict[str, Any]:
    """Run each package by Core ML and by onnxruntime on the same drawn inputs.

    Args:
        bundle: with graphs for Core ML.
        device: opens the package of a role where it is to be proved.
        rounds: inputs drawn for each graph.

    Returns:
        By role and output {"max_abs", "cosine"}, the worst of all rounds.

    Raises:
        ParityError: they differ by more than float16 explains.
        BackendError: Core ML does not run here.
        UsageError: the bundle has no graphs for Core ML.
    """
    graphs = [graph for graph in bundle.manifest.graphs if graph.target == "coreml"]
    if not graphs:
        raise UsageError(
            f"{bundle.name} has no graphs for Core ML; tellapart export CHECKPOINT --target coreml makes them"
        )
    report: dict[str, Any] = {}
    for graph in graphs:
        with ExitStack() as stack:
            there, here = device(graph.role), open_elsewhere(bundle, graph.role)
            stack.callback(there.close)
            stack.callback(here.close)
            compare_runs(report, graph, here.run, there.run, rounds=rounds, device="Core ML")
    return report


def prove_captions(bundle: Path, images: Path, runtime: RuntimeOptions) -> dict[str, Any]:
    """Caption photos from the packages and from the ONNX graphs beside them, greedily, and compare.

    Args:
        bundle: with graphs for both.
        images: a folder of photos.
        runtime: of the packages.

    Returns:
        {"photos", "equal", "first_other"}: how many, how many have the same caption, and of the first other
        one its name and both captions; None where there is none.

    Raises:
        ParityError: fewer than `LEAST_EQUAL` are equal.
        BackendError: Core ML does not run here, or the bundle has no ONNX graphs.
        UsageError: no photo there.
        ImageError: one that cannot be read.
    """
    names = list_images(images)
    if not names:
        raise UsageError(f"no image in the folder {images}")
    options = DecodeOptions(beams=1, rerank=0.0)
    with (
        Captioner.open(bundle, runtime=RuntimeOptions(backend="onnxruntime")) as here,
        Captioner.open(bundle, runtime=runtime) as there,
    ):
        pairs = [
            tuple(captioner.caption(images / name, options=options) for captioner in (here, there))
            for name in names
        ]
    others = [
        {"photo": name, "onnxruntime": wanted.text, "coreml": given.text}
        for name, (wanted, given) in zip(names, pairs, strict=True)
        if wanted.token_ids != given.token_ids
    ]
    equal = len(names) - len(others)
    if equal < LEAST_EQUAL * len(names):
        raise ParityError(
            f"Core ML gives {equal} of {len(names)} photos the caption that onnxruntime gives them; the first"
            f" other one: {others[0]}"
        )
    return {"photos": len(names), "equal": equal, "first_other": others[0] if others else None}


def compare_runs(
    report: dict[str, Any], graph: GraphSpec, here: Run, there: Run, *, rounds: int, device: str
) -> None:
    """Run a graph of fixed shapes twice on drawn inputs; the worst of all rounds is added to `report`.

    Raises:
        ParityError: they differ by more than float16 explains.
    """
    for feed in draw_feeds(graph, rounds=rounds):
        wanted, given = here(feed), there(feed)
        for name, array in wanted.items():
            entry = _gap(f"{graph.role}.{name}", array, given[name], device)
            before = report.setdefault(f"{graph.role}.{name}", entry)
            before["max_abs"] = max(before["max_abs"], entry["max_abs"])
            before["cosine"] = min(before["cosine"], entry["cosine"])


def draw_feeds(graph: GraphSpec, *, rounds: int) -> list[dict[str, Any]]:
    """Inputs of fixed shapes from a seeded generator, the window from empty to full."""
    draw = np.random.default_rng(0)
    feeds: list[dict[str, Any]] = []
    for index in range(rounds):
        feed: dict[str, Any] = {}
        window = 1
        for tensor in graph.inputs:
            shape = tuple(int(axis) for axis in tensor.shape)
            if tensor.name == "pixels":
                coarse = draw.integers(0, 256, (shape[1] // 8 + 1, shape[2] // 8 + 1, 3)).astype(np.uint8)
                feed[tensor.name] = coarse.repeat(8, 0).repeat(8, 1)[None, : shape[1], : shape[2]]
            elif tensor.name == "ids":
                feed[tensor.name] = draw.integers(0, 40, shape).astype(tensor.dtype)
            elif tensor.name == "position":
                feed[tensor.name] = np.zeros(shape, tensor.dtype)
            else:
                window = shape[3] if tensor.name == "past_kv" else window
                feed[tensor.name] = draw.standard_normal(shape).astype(np.float32)
        if "position" in feed:
            feed["position"][:] = index * (window - 1) // max(rounds - 1, 1)
        feeds.append({name: np.ascontiguousarray(array) for name, array in feed.items()})
    return feeds


def _gap(output: str, wanted: Any, given: Any, device: str) -> dict[str, float]:
    if given.shape != wanted.shape:
        raise ParityError(f"{output}: {device} gives {given.shape}, expected {wanted.shape}")
    a, b = wanted.astype(np.float64).ravel(), given.astype(np.float64).ravel()
    gap, allowed = float(np.abs(a - b).max()), LARGEST_GAP * max(1.0, float(np.abs(a).max()))
    cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    if not (gap <= allowed and cosine >= LEAST_COSINE):  # written so that a NaN fails
        raise ParityError(
            f"{output}: {device} is off by {gap:.2e} (at most {allowed:.2e} allowed), cosine {cosine:.6f}"
        )
    return {"max_abs": gap, "cosine": min(cosine, 1.0)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 proved, 1 it differs or cannot run here, 2 usage or a missing package."""
    parser = argparse.ArgumentParser(
        prog="python -m tellapart_coreml", description="Prove a bundle's Core ML packages on this Mac."
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="exported with --target coreml")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="photos to caption from the packages and from the ONNX graphs beside them",
    )
    parser.add_argument(
        "--units", default=UNITS[0], metavar="UNITS", help=f"one of {', '.join(UNITS)} (default {UNITS[0]})"
    )
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="inputs for each graph")
    args = parser.parse_args(argv)
    try:
        runtime = RuntimeOptions(backend="coreml", providers=(args.units,))
        with open_bundle(args.bundle) as bundle:
            device = partial(open_session, bundle, runtime=runtime)
            report = prove_bundle(bundle, device, rounds=args.rounds)
        if args.images is not None:
            report["captions"] = prove_captions(args.bundle, args.images, runtime)
    except TellapartError as error:
        print(f"tellapart_coreml: {type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (UsageError, MissingExtraError)) else 1
    print(json.dumps(report, indent=1))
    return 0
