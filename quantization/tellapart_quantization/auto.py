"""`--scheme auto`: make the bundle by each scheme that runs here, keep the fastest that keeps the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tellapart.bundle import Bundle, open_bundle, write_bundle
from tellapart.errors import BackendError, BudgetError, MissingExtraError, UsageError
from tellapart.photos import Photos
from tellapart_quantization.options import QuantizeOptions
from tellapart_quantization.report import check_budget, compare_bundles
from tellapart_quantization.schemes import SCHEMES
from tellapart_quantization.timing import time_in_turns
from tellapart_quantization.write_graphs import write_graphs


def choose_scheme(
    source: Bundle,
    scratch: Path,
    photos: Photos,
    calibrated: list[str],
    checked: list[str],
    options: QuantizeOptions,
    *,
    captions: Mapping[str, Sequence[str]] | None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[str, list[dict[str, Any]]]:
    """Try the schemes for hardware that is here; those for other hardware have to be asked for.

    Args:
        source: the float bundle.
        scratch: folder of the bundle to be, in a private folder where the tries go.
        photos: where photos are.
        calibrated: names of those to calibrate on.
        checked: names of those to compare on.
        options: budget, and blocks to keep in float.
        captions: of `checked`.
        say: told what is going on.

    Returns:
        The scheme's name, and for each that was tried {"scheme", "kept": bool, "reason", "time", "size_mib",
        "token_agreement", ...}: what the report of that scheme alone would say.

    Raises:
        BudgetError: none keeps the budget and is quicker than the float bundle.
    """
    tried: list[dict[str, Any]] = []
    with ExitStack() as stack:
        able: list[tuple[dict[str, Any], Bundle]] = []
        for name, scheme in SCHEMES.items():
            if scheme.device:
                continue
            entry: dict[str, Any] = {"scheme": name, "kept": False}
            tried.append(entry)
            say(f"trying {name}")
            folder = scratch.with_name(f"try-{name}")
            folder.mkdir()
            own = dataclasses.replace(options, scheme=name)
            try:
                manifest, _ = write_graphs(source, folder, photos, calibrated, own, say)
                write_bundle(folder, manifest)
                made = stack.enter_context(open_bundle(folder))
                report = compare_bundles(source, made, photos, checked, captions=captions)
                keys = ("size_mib", "token_agreement", "mean_image_cosine", "cider_d", "retrieval")
                entry.update({key: report[key] for key in keys if key in report})
                check_budget(report, options.budget)
                able.append((entry, made))
            except (BudgetError, MissingExtraError, UsageError, BackendError) as error:
                entry["reason"] = str(error)
        if able:
            times = time_in_turns(source, [made for _, made in able], photos, checked)
            for (entry, _), found in zip(able, times, strict=True):
                entry["time"] = found
                entry["reason"] = "slower than another"
                if found["ratio"] >= 1:
                    entry["reason"] = "no quicker than float"
    quick = [entry for entry, _ in able if entry["time"]["ratio"] < 1]
    for entry in tried:
        say(f"{entry['scheme']}: {entry.get('time', entry.get('reason'))}")
    if not quick:
        reasons = "; ".join(f"{entry['scheme']}: {entry['reason']}" for entry in tried)
        raise BudgetError(f"no scheme keeps the budget and is quicker than float here: {reasons}")
    best = min(quick, key=lambda entry: float(entry["time"]["ratio"]))
    best.update(kept=True, reason="the fastest within the budget")
    return str(best["scheme"]), tried
