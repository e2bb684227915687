"""`tellapart info` and `tellapart verify`: what is inside a bundle, and whether it is what it says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from tellapart.backends import TARGET_OF, open_session
from tellapart.bundle import Bundle, open_bundle
from tellapart.commands.choices import runtime_options
from tellapart.errors import BackendError, UsageError
from tellapart.manifest import TensorSpec
from tellapart.tokenizer import Tokenizer
from tellapart.types import RuntimeOptions

__all__ = ["run"]

_MIB = 1024 * 1024


def run(args: argparse.Namespace) -> int:
    """Show or verify one bundle. Both check every hash first: a bundle that fails is not described.

    Raises:
        TellapartError: what is wrong with the bundle, and where.
    """
    if args.bundle is not None and args.model is not None:
        raise UsageError("name the bundle once: as BUNDLE or as --model")
    with open_bundle(args.bundle or args.model) as bundle:
        return _info(bundle, args) if args.inspect == "info" else _verify(bundle, args)


def _info(bundle: Bundle, args: argparse.Namespace) -> int:
    manifest = bundle.manifest
    if args.json:
        record = {"bundle": bundle.name, "model": bundle.sha256, "size_mib": round(_size_mib(bundle), 3)}
        print(json.dumps({**record, "manifest": manifest.to_fields()}, ensure_ascii=False))
        return 0
    pixels, words = manifest.preprocessing, manifest.vocabulary
    print(f"{manifest.name}  {bundle.sha256}")
    print(f"  where       {bundle.name}")
    print(f"  kind        {', '.join(manifest.kind)}")
    print(f"  size        {_size_mib(bundle):.1f} MiB in {len(manifest.files)} files")
    print(f"  precision   {manifest.precision}{f' ({manifest.scheme})' if manifest.scheme else ''}")
    print(f"  image       {pixels.image_px} px, {pixels.resize}, {pixels.filter}")
    print(f"  vocabulary  {words.file}, {words.kind}, text up to {words.max_text_tokens} pieces")
    print(f"  licence     {manifest.licence or 'not stated'}")
    for graph in manifest.graphs:
        # A package for Core ML is a folder.
        parts = [path for path in manifest.files if path == graph.file or path.startswith(f"{graph.file}/")]
        size_mib = sum(manifest.files[path].bytes for path in parts) / _MIB
        print(f"  graph       {graph.role} for {graph.target}: {graph.file}, {size_mib:.1f} MiB")
        for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
            print(f"    {direction:<4}{', '.join(_tensors(tensors))}")
    for name, figures in manifest.metrics.get("evaluate", {}).items():
        print(f"  measured    {name}: {', '.join(f'{key} {value:.4g}' for key, value in figures.items())}")
    reports = {
        section: list(_flat(getattr(manifest, section))) for section in ("metrics", "parity", "source")
    }
    for section, values in reports.items():
        for key, value in values if args.verbose else ():
            print(f"  {section:<11} {key} = {value}")
    hidden = 0 if args.verbose else sum(len(values) for values in reports.values())
    if hidden:
        print(f"  reports     {hidden} lines of metrics, parity and source: --verbose shows them")
    return 0


def _verify(bundle: Bundle, args: argparse.Namespace) -> int:
    """Hashes held when the bundle was opened; now the runtime must agree with the graph table."""
    runtime = runtime_options(args)
    Tokenizer.from_bundle(bundle)
    roles = tuple(dict.fromkeys(graph.role for graph in bundle.manifest.graphs))
    for role in roles:
        _check_shapes(bundle, role, runtime)
    files = len(bundle.manifest.files)
    if args.json:
        print(
            json.dumps({"bundle": bundle.name, "model": bundle.sha256, "files": files, "graphs": list(roles)})
        )
    else:
        print(f"{bundle.name}: {files} files and {len(roles)} graphs are what the manifest says")
    return 0


def _check_shapes(bundle: Bundle, role: str, runtime: RuntimeOptions) -> None:
    """Run a graph once on zeros and compare what comes out with the graph table.

    Raises:
        BackendError: the runtime refuses graph or inputs, or an output has another shape or dtype.
    """
    session = open_session(bundle, role, runtime)
    try:
        graph = bundle.graph(role, TARGET_OF[session.backend])
        # Every free dimension is 1; an output may have more that no input names, such as past + 1.
        free = {size for tensor in graph.inputs for size in tensor.shape if isinstance(size, str)}
        feeds = {
            tensor.name: np.zeros(
                [size if isinstance(size, int) else 1 for size in tensor.shape], tensor.dtype
            )
            for tensor in graph.inputs
        }
        results = session.run(feeds)
        for tensor in graph.outputs:
            have = results[tensor.name]
            sizes = zip(tensor.shape, have.shape, strict=False)
            fits = len(tensor.shape) == have.ndim and all(
                size == (1 if want in free else want) or (isinstance(want, str) and want not in free)
                for want, size in sizes
            )
            # Core ML's halves come as floats, which numpy computes with.
            dtypes = (tensor.dtype, "float32" if tensor.dtype == "float16" else tensor.dtype)
            if have.dtype not in dtypes or not fits:
                raise BackendError(
                    f"{graph.file} of {bundle.name} gives {tensor.name} as {have.dtype} {have.shape} where "
                    f"the manifest says {tensor.dtype} {tensor.shape}; export the bundle again"
                )
    finally:
        session.close()


def _size_mib(bundle: Bundle) -> float:
    return sum(entry.bytes for entry in bundle.manifest.files.values()) / _MIB


def _tensors(tensors: Iterable[TensorSpec]) -> list[str]:
    return [f"{tensor.name} {tensor.dtype} ({', '.join(map(str, tensor.shape))})" for tensor in tensors]


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested report values as dotted names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, str(value)
