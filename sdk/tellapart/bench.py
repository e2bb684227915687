"""How fast and how large a bundle is on this machine: milliseconds per stage, tokens per second, peak memory.

The first caption of a process pays for what later ones find ready, so it is told apart from the median and
the 95th percentile of the others. Two bundles are timed in turns, caption by caption, because machines
drift: only what was measured side by side may be divided. Memory is the high-water mark that the kernel
keeps (VmHWM); `ru_maxrss` would remember the process that started us. With two bundles it is taken in a
process for each.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellapart.captioner import Captioner
from tellapart.errors import MissingExtraError, TellapartError, UsageError
from tellapart.types import Caption, DecodeOptions, ImageInput, RuntimeOptions

__all__ = ["BenchReport", "StageTimes", "bench", "drawn_photos", "peak_rss_mib", "peak_rss_of_bundle_mib"]

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Milliseconds of one stage over all rounds."""

    first_ms: float
    p50_ms: float
    """Median of all rounds but the first, or the first where there is only one."""

    p95_ms: float


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What one bundle did."""

    bundle: str
    """Its name, as the manifest gives it."""

    model: str
    """SHA-256 of its manifest."""

    size_mib: float
    """All its files together."""

    rounds: int
    stages: Mapping[str, StageTimes]
    """By name: the stages of a caption ("load" is the opening of bundle and graphs, over with the first
    caption), "total" of one call, and "text", a caption embedded."""

    tokens_per_s: float
    """Pieces of the captions over the whole time of decoding; more beams cost time and add no piece."""

    peak_rss_mib: float | None
    """High-water mark of this process; None where the system does not tell, or two bundles share it."""

    def to_record(self) -> dict[str, Any]:
        """The report as plain JSON values, rounded to what a clock can tell."""
        record = asdict(self)
        record["stages"] = {
            stage: {name: round(value, 3) for name, value in times.items()}
            for stage, times in record["stages"].items()
        }
        for name in ("size_mib", "tokens_per_s", "peak_rss_mib"):
            record[name] = None if record[name] is None else round(record[name], 1)
        return record


def bench(
    bundles: Sequence[Path | None],
    images: Sequence[ImageInput],
    *,
    runtime: RuntimeOptions,
    options: DecodeOptions,
    rounds: int,
) -> tuple[BenchReport, ...]:
    """Open bundles and caption images in turns.

    Args:
        bundles: one or several; None is the embedded one.
        images: taken one after the other, again from the first when they are over.
        runtime: the same for all.
        options: the same for all.
        rounds: captions per bundle.

    Returns:
        One report per bundle, in their order.

    Raises:
        UsageError: no image, or less than one round.
        TellapartError: what opening and captioning raise.
    """
    if rounds < 1 or not images:
        raise UsageError(f"expected at least one round and one image, got {rounds} and {len(images)}")
    with ExitStack() as stack:
        captioners: list[Captioner] = []
        samples: list[list[dict[str, float]]] = []
        tokens = [0] * len(bundles)
        for bundle in bundles:
            captioners.append(stack.enter_context(Captioner.open(bundle, runtime=runtime)))
            samples.append([])
        for turn in range(rounds):
            # Whoever goes second finds the image in the cache, so they take turns in that too.
            order = range(len(captioners)) if turn % 2 == 0 else reversed(range(len(captioners)))
            for index in order:
                caption, times = _one_round(captioners[index], images[turn % len(images)], options)
                samples[index].append(times)
                tokens[index] += len(caption.token_ids)
        rss_mib = peak_rss_mib() if len(bundles) == 1 else None
        return tuple(
            _report(captioners[index], samples[index], tokens[index], rss_mib)
            for index in range(len(bundles))
        )


def _one_round(
    captioner: Captioner, image: ImageInput, options: DecodeOptions
) -> tuple[Caption, dict[str, float]]:
    started_s = time.perf_counter()
    caption = captioner.caption(image, options=options)
    total_ms = _since_ms(started_s)
    times = {**caption.elapsed_ms, "total": total_ms}
    if "retriever" in captioner.bundle.manifest.kind:
        started_s = time.perf_counter()
        captioner.retriever.embed_texts([caption.text])
        times["text"] = _since_ms(started_s)
    return caption, times


def _report(
    captioner: Captioner,
    samples: list[dict[str, float]],
    tokens: int,
    rss_mib: float | None,
) -> BenchReport:
    stages = {}
    for stage in samples[0]:
        first, *later = (sample[stage] for sample in samples if stage in sample)
        p50, p95 = np.percentile(later or [first], [50, 95])
        stages[stage] = StageTimes(first_ms=first, p50_ms=float(p50), p95_ms=float(p95))
    decoding_ms = sum(sample.get("decode", sample["total"]) for sample in samples)
    manifest = captioner.bundle.manifest
    return BenchReport(
        bundle=manifest.name,
        model=captioner.bundle.sha256,
        size_mib=sum(entry.bytes for entry in manifest.files.values()) / _MIB,
        rounds=len(samples),
        stages=stages,
        tokens_per_s=1000.0 * tokens / max(decoding_ms, 1e-9),
        peak_rss_mib=rss_mib,
    )


def peak_rss_mib() -> float | None:
    """Most memory that this process ever held, in MiB; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None


def peak_rss_of_bundle_mib(
    bundle: Path | None, *, runtime: RuntimeOptions, options: DecodeOptions
) -> float | None:
    """Peak memory of a fresh process that opens a bundle and captions three drawn photos, in MiB.

    Raises:
        TellapartError: the process failed; its own words are in the message.
    """
    arguments = ["bench", "--json", "--rounds", "3", "--backend", runtime.backend]
    arguments += ["--threads", str(runtime.threads)]
    if bundle is not None:
        arguments += ["--model", str(bundle)]
    for provider in runtime.providers:
        arguments += ["--provider", provider]
        for key, setting in runtime.provider_options.get(provider, {}).items():
            arguments += ["--provider-option", provider, f"{key}={setting}"]
    if runtime.spin:
        arguments.append("--spin")
    if options.beams is not None:
        arguments += ["--beams", str(options.beams)]
    done = subprocess.run(
        [sys.executable, "-m", "tellapart", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise TellapartError(f"the process that measures memory failed: {done.stderr.strip()[-500:]}")
    value = json.loads(done.stdout)["bundles"][0]["peak_rss_mib"]
    return None if value is None else float(value)


def drawn_photos(count: int = 4) -> list[bytes]:
    """JPEGs of soft noise, 640 x 480: every run measures the same work, and no photo is needed.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError("cpu", "Measuring needs Pillow, which is not installed") from error
    generator = np.random.default_rng(11)
    photos = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(stream, format="JPEG", quality=90)
        photos.append(stream.getvalue())
    return photos


def _since_ms(started_s: float) -> float:
    return (time.perf_counter() - started_s) * 1000.0
