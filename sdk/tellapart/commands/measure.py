"""`tellapart bench` and `tellapart doctor`: numbers of this machine, never of another."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tellapart.bench import BenchReport, bench, drawn_photos, peak_rss_of_bundle_mib
from tellapart.commands.choices import decode_options, find_images, runtime_options
from tellapart.errors import TellapartError

if TYPE_CHECKING:
    from tellapart.checks import Check

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Measure, or examine the machine.

    Raises:
        TellapartError: usage, an image, the bundle, the runtime.
    """
    return _bench(args) if args.measure == "bench" else _doctor(args)


def _bench(args: argparse.Namespace) -> int:
    runtime, options = runtime_options(args), decode_options(args)
    images = find_images(args.paths) if args.paths else drawn_photos()
    bundles = [args.model] if args.against is None else [args.model, args.against]
    reports = bench(bundles, images, runtime=runtime, options=options, rounds=args.rounds)
    if len(reports) > 1:
        reports = tuple(
            replace(report, peak_rss_mib=peak_rss_of_bundle_mib(bundle, runtime=runtime, options=options))
            for report, bundle in zip(reports, bundles, strict=True)
        )
    record: dict[str, Any] = {"bundles": [report.to_record() for report in reports]}
    if len(reports) > 1:
        record["ratio"] = _ratio(*reports)
    if args.json:
        print(json.dumps(record, allow_nan=False))
        return 0
    for report in reports:
        _print_report(report)
    if len(reports) > 1:
        ratio = record["ratio"]
        print(
            f"{reports[0].bundle} against {reports[1].bundle}: time {ratio['total_p50']:.2f}, "
            f"size {ratio['size']:.2f} (below 1: less)"
        )
    return 0


def _ratio(ours: BenchReport, theirs: BenchReport) -> dict[str, float]:
    """The first bundle divided by the second; below 1 it takes less."""
    return {
        "total_p50": round(ours.stages["total"].p50_ms / theirs.stages["total"].p50_ms, 4),
        "size": round(ours.size_mib / theirs.size_mib, 4),
    }


def _print_report(report: BenchReport) -> None:
    print(f"{report.bundle}  {report.model[:12]}  {report.size_mib:.1f} MiB  {report.rounds} captions")
    print(f"  {'stage':<12}{'first':>10}{'p50':>10}{'p95':>10}  ms")
    for stage, times in report.stages.items():
        print(f"  {stage:<12}{times.first_ms:>10.2f}{times.p50_ms:>10.2f}{times.p95_ms:>10.2f}")
    rss = "unknown here" if report.peak_rss_mib is None else f"{report.peak_rss_mib:.0f} MiB"
    print(f"  {report.tokens_per_s:.0f} tokens a second, peak memory {rss}")


def _doctor(args: argparse.Namespace) -> int:
    """What the machine has; without a bundle or a runtime it still answers, and says what is missing."""
    from tellapart.checks import run_checks
    from tellapart.doctor import advise_threads, examine_machine

    machine = examine_machine()
    checks = run_checks(args.model, runtime=runtime_options(args), cpu_flags=machine.cpu_flags)
    advice, obstacle = None, None
    if not args.no_measure:
        try:
            advice = advise_threads(args.model, drawn_photos(), runtime=runtime_options(args))
        except TellapartError as error:
            obstacle = str(error)
    if args.json:
        measured = None
        if advice is not None:
            by_threads = {str(threads): round(ms, 3) for threads, ms in advice.median_ms.items()}
            measured = {"threads": advice.threads, "median_ms": by_threads, "by_graph": advice.by_graph}
        record = {**machine.to_record(), "checks": [asdict(check) for check in checks]}
        print(json.dumps({**record, "advice": measured, "obstacle": obstacle}))
        return 0
    _print_checks(checks)
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items() if version)
    print(f"tellapart  {machine.tellapart} on Python {machine.python}, {machine.system}")
    print(f"packages   {versions}")
    print(f"backends   {', '.join(name for name, there in machine.backends.items() if there) or 'none'}")
    print(f"providers  {', '.join(machine.providers) or 'none'}")
    memory = "" if machine.memory_mib is None else f", {machine.memory_mib:.0f} MiB of memory"
    print(f"processor  {machine.cpu}, {machine.cores} cores for us{memory}")
    print(f"flags      {' '.join(machine.cpu_flags) or 'none that matter here'}")
    if advice is not None:
        measured_ms = ", ".join(f"{threads}: {ms:.1f} ms" for threads, ms in advice.median_ms.items())
        print(f"threads    {measured_ms} a caption; recommended: --threads {advice.threads}")
        graphs = ", ".join(f"{role} {threads}" for role, threads in advice.by_graph.items())
        kept = "from now on" if advice.kept else "which could not be kept: the cache folder cannot be written"
        print(f"           --threads auto takes {graphs}, {kept}")
    elif obstacle is not None:
        print(f"threads    not measured: {obstacle}")
    return 0


def _print_checks(checks: Sequence[Check]) -> None:
    """What works, then what does not and what mends it."""
    for check in checks:
        if check.works:
            print(f"ok   {check.name:<10}{check.finding}")
    for check in checks:
        if not check.works:
            print(f"{'NO  ' if check.needed else '-   '} {check.name:<10}{check.finding}")
            if check.mend is not None:
                print(f"               {check.mend}")
    print()
