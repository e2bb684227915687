"""What can be proved of Core ML packages without an Apple device, and the command that proves the rest there.

First the conversion: a package of the same graph in float32, made for this and thrown away, has to give the
network's numbers as strictly as any other target. Then the package in float16 that is published: its own
operations and numbers, each result rounded to float16, and how many captions change by that. Its weights
are looked up among those of the checkpoint. All by onnxruntime, see `tellapart_coreml.as_onnx`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tellapart.backends import Session
from tellapart.backends.coreml import session_of
from tellapart.bundle import Bundle
from tellapart_coreml.package import Program, read_package
from tellapart_coreml.session import ELSEWHERE, check_program, open_elsewhere, run_elsewhere
from tellapart_export.fixed_shapes import window_of
from tellapart_export.graphs import SourceGraph
from tellapart_export.parity import FLOAT32, HALF, Tolerance
from tellapart_export.subject import Subject
from tellapart_export.to_coreml import coreml_spec, write_coreml

UNPROVED = "unproved on device: no Apple device took part; the same operations were run by onnxruntime"
COMMAND = "python -m tellapart_coreml BUNDLE"
"""To be run on a Mac."""

_LEAST_NUMBERS = 1024

Prove = Callable[[Subject, Callable[[str], Session], Tolerance], dict[str, Any]]
"""The proof that every target gets: subject, sessions by role, and what counts as equal."""


def prove_packages(subject: Subject, bundle: Bundle, prove: Prove) -> dict[str, Any]:
    """Compare conversion, packages and weights with the network.

    Args:
        subject: the network's side.
        bundle: has graphs for Core ML.
        prove: run for the conversion and for the packages.

    Returns:
        JSON values: `device` and `device_command`; `float32` and `float16`, each as other targets have it;
        `weights`: numbers of the checkpoint's larger tensors and the share of them that the packages hold
        as they are; `specification`: version, opset, largest number of axes, kinds of operations.

    Raises:
        ParityError: the conversion or a package is not the network.
    """
    decoding = bundle.manifest.decoding
    window = window_of(subject, decoding)
    short = dataclasses.replace(subject, positions=window - 1)
    sources = {source.spec.role: source for source in subject.graphs}
    report: dict[str, Any] = {"device": UNPROVED, "device_command": COMMAND}

    with tempfile.TemporaryDirectory() as folder:

        def convert(role: str) -> Session:
            tokens = subject.vocabulary.max_text_tokens
            spec = coreml_spec(sources[role].spec, window=window, tokens=tokens, half=False)
            out = Path(folder) / spec.file
            write_coreml(sources[role], spec, out)
            program = read_package(out)
            check_program(program, spec)
            predict = run_elsewhere(program)
            return session_of(spec, predict, name="", providers=ELSEWHERE, pad_id=subject.pad_id)

        report["float32"] = prove(short, convert, FLOAT32)
    report["float16"] = prove(short, lambda role: open_elsewhere(bundle, role), HALF)
    programs = {role: read_package(bundle.root / bundle.graph(role, "coreml").file) for role in sources}
    report["weights"] = _look_up(sources, programs)
    report["specification"] = {role: describe(program) for role, program in programs.items()}
    return report


def describe(program: Program) -> dict[str, Any]:
    """What a device has to know of a program, as JSON values."""
    values = [value for operation in program.operations for value in operation.outputs]
    return {
        "version": program.version,
        "opset": program.opset,
        "operations": len(program.operations),
        "kinds": sorted({operation.kind for operation in program.operations}),
        "most_axes": max(len(value.shape) for value in values),
    }


def _look_up(sources: dict[str, SourceGraph], programs: dict[str, Program]) -> dict[str, Any]:
    """How much of the checkpoint lies in the packages unchanged but for float16.

    What is missing was folded into its neighbour (batch norms, scales) or cut in parts; the runs above
    cover it.
    """
    numbers = found = 0
    have = {_fingerprint(array) for program in programs.values() for array in _large(program)}
    parameters = {id(item): item for source in sources.values() for item in _parameters(source.module)}
    for parameter in parameters.values():
        half = parameter.detach().half().numpy()
        numbers += half.size
        found += half.size * (_fingerprint(half) in have)
    return {"numbers": numbers, "found": round(found / max(numbers, 1), 4)}


def _parameters(module: nn.Module) -> Iterator[Any]:
    return (parameter for parameter in module.parameters() if parameter.numel() >= _LEAST_NUMBERS)


def _large(program: Program) -> Iterator[Any]:
    for value in program.constants.values():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size >= _LEAST_NUMBERS:
            yield value.astype(np.float16)


def _fingerprint(array: Any) -> tuple[int, bytes]:
    """The same for an array and for any turning of its axes."""
    ordered = np.sort(array.ravel().view(np.uint16))
    return array.size, hashlib.sha256(ordered.tobytes()).digest()
