"""`python -m tellapart_coreml BUNDLE`, on a Mac: does Core ML compute what was proved elsewhere?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.backends.fixed_shapes import Run
from tellapart.bundle import Bundle, open_bundle
from tellapart.errors import MissingExtraError, ParityError, TellapartError, UsageError
from tellapart.manifest import GraphSpec
from tellapart_coreml.package import read_package
from tellapart_coreml.session import check_program, run_elsewhere, run_on_device

LEAST_COSINE = 0.999
LARGEST_GAP = 5e-2
"""As a share of the largest value (or of 1): float16 with sums in another order."""


def prove_bundle(
    bundle: Bundle, device: Callable[[Path], Run] = run_on_device, *, rounds: int = 4
) -> dict[str, Any]:
    """Run each package by Core ML and by onnxruntime on the same drawn inputs.

    Args:
        bundle: with graphs for Core ML.
        device: opens a package where it is to be proved.
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
        package = bundle.root / graph.file
        program = read_package(package)
        check_program(program, graph)
        here, there = run_elsewhere(program), device(package)
        compare_runs(report, graph, here, there, rounds=rounds, device="Core ML")
    return report


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
    parser.add_argument("bundle", metavar="BUNDLE", help="exported with --target coreml")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="inputs for each graph")
    args = parser.parse_args(argv)
    try:
        with open_bundle(args.bundle) as bundle:
            report = prove_bundle(bundle, rounds=args.rounds)
    except TellapartError as error:
        print(f"tellapart_coreml: {type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (UsageError, MissingExtraError)) else 1
    print(json.dumps(report, indent=1))
    return 0
