"""What this machine has, and how many threads serve it best: for a bug report, and before a deployment.

Versions are read from package metadata, so nothing is imported that could fail. The number of threads is
measured, as no rule survives the variety of small machines: on many, a second thread buys a small decoder
nothing and costs heat.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tellapart._version import __version__
from tellapart.backends import TARGET_OF, runs_here
from tellapart.backends.threads import remember
from tellapart.errors import BackendError, MissingExtraError
from tellapart.types import DecodeOptions, ImageInput, RuntimeOptions

__all__ = ["Machine", "ThreadAdvice", "advise_threads", "examine_machine"]

PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "coremltools")
"""Distributions whose version matters to a device."""

USEFUL_CPU_FLAGS = (
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""Instructions that INT8 or float kernels use, as /proc/cpuinfo spells them on x86 and ARM."""

_GOOD_ENOUGH = 1.05
"""Fewer threads win when they cost at most this factor: they leave the machine to others."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Versions, runtimes and processor."""

    tellapart: str
    python: str
    system: str
    packages: dict[str, str | None]
    """Version by distribution; None where it is not installed."""

    backends: dict[str, bool]
    """Runtimes by the names of `RuntimeOptions.backend`, and whether they are installed and can run here."""

    providers: tuple[str, ...]
    """Execution providers of onnxruntime; empty where it is not installed or does not load."""

    cpu: str
    cpu_flags: tuple[str, ...]
    """Those of `USEFUL_CPU_FLAGS` that this processor has."""

    cores: int
    """Processors that this process may use."""

    memory_mib: float | None
    """Memory of the machine; None where the system does not tell."""

    def to_record(self) -> dict[str, Any]:
        """The findings as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ThreadAdvice:
    """What the measurement says."""

    threads: int
    """The fewest threads that are within 5 % of the fastest."""

    median_ms: dict[int, float]
    """Milliseconds of a caption by number of threads."""

    by_graph: dict[str, int]
    """Likewise the fewest for "vision" and "decoder" each; what "auto" follows from now on."""

    kept: bool
    """Whether the measurement could be written to the cache folder."""


def examine_machine() -> Machine:
    """Look around; takes no longer than the import of onnxruntime."""
    cpu, flags = _processor()
    return Machine(
        tellapart=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: _version_of(name) for name in PACKAGES},
        backends={name: runs_here(name) for name in TARGET_OF},
        providers=_onnxruntime_providers(),
        cpu=cpu,
        cpu_flags=tuple(flag for flag in USEFUL_CPU_FLAGS if flag in flags),
        cores=usable_cores(),
        memory_mib=_memory_mib(),
    )


def machine_facts() -> dict[str, Any]:
    """Processor, its flags and the versions that figures depend on, for a report; plain JSON values."""
    machine = examine_machine()
    return {
        "cpu": machine.cpu,
        "cpu_flags": list(machine.cpu_flags),
        "cores": machine.cores,
        "packages": ", ".join(f"{name} {version}" for name, version in machine.packages.items() if version),
    }


def usable_cores() -> int:
    """Processors that this process may use, which can be fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_candidates(cores: int) -> tuple[int, ...]:
    """Numbers of threads worth trying: powers of two, and all cores."""
    powers = [1 << exponent for exponent in range(cores.bit_length()) if 1 << exponent <= cores]
    return tuple(sorted({*powers, cores}))


def advise_threads(
    bundle: Path | None,
    images: Sequence[ImageInput],
    *,
    runtime: RuntimeOptions,
    rounds: int = 5,
) -> ThreadAdvice:
    """Caption with several numbers of threads, in turns, compare medians, and keep what was found for "auto".

    Args:
        bundle: what to measure; None is the embedded one.
        images: at least one.
        runtime: everything but the number of threads.
        rounds: captions per number, after one that warms up.

    Raises:
        TellapartError: what opening and captioning raise.
    """
    from tellapart.bench import bench

    medians: dict[int, float] = {}
    by_stage: dict[str, dict[int, float]] = {"vision": {}, "decode": {}}
    model = ""
    for threads in thread_candidates(usable_cores()):
        # One after the other, because idle threads of an open session could disturb the next one.
        (report,) = bench(
            [bundle],
            images,
            runtime=replace(runtime, threads=threads),
            options=DecodeOptions(),
            rounds=rounds + 1,
        )
        medians[threads] = report.stages["total"].p50_ms
        model = report.model
        for stage, found in by_stage.items():
            found[threads] = report.stages[stage].p50_ms
    by_graph = {
        "vision": choose_threads(by_stage["vision"]),
        "decoder": choose_threads(by_stage["decode"]),
    }
    kept = remember(model, by_graph) is not None
    return ThreadAdvice(threads=choose_threads(medians), median_ms=medians, by_graph=by_graph, kept=kept)


def choose_threads(median_ms: dict[int, float]) -> int:
    """The fewest threads that are within 5 % of the fastest.

    Args:
        median_ms: milliseconds by number of threads, at least one.
    """
    fastest_ms = min(median_ms.values())
    return min(threads for threads, ms in median_ms.items() if ms <= fastest_ms * _GOOD_ENOUGH)


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _onnxruntime_providers() -> tuple[str, ...]:
    from tellapart.backends.ort import available_providers

    try:
        return available_providers()
    except (MissingExtraError, BackendError):  # absent, or its library does not load: both mean no use
        return ()


def _processor() -> tuple[str, frozenset[str]]:
    """Name and flags, from Linux where it tells, else whatever Python knows."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features") and not flags:
            flags = value
    return name, frozenset(flags.split())


def _memory_mib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1024 * 1024)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
