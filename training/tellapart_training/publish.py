"""The last step of the embedded recipe: figures and a card into the bundle, the bundle into its place."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from tellapart.bundle import open_bundle, staged_bundle, write_bundle
from tellapart.errors import DataError
from tellapart.manifest import Manifest
from tellapart_training.run_folder import git_commit

CARD = "MODEL_CARD.md"
LICENCE = (
    "Weights: research and education only, as Flickr8k's terms ask (Hodosh, Young and Hockenmaier, 2013). "
    "Code: Apache-2.0."
)
_SHOWN = (
    ("CIDEr-D (0 to 10)", "cider_d"),
    ("BLEU-4", "bleu_4"),
    ("ROUGE-L", "rouge_l"),
    ("words per caption", "mean_words"),
    ("vocabulary used", "vocabulary_used"),
    ("distinct captions (share)", "distinct_captions"),
    ("text to image R@1", "text_to_image_r1"),
    ("text to image R@5", "text_to_image_r5"),
    ("text to image R@10", "text_to_image_r10"),
    ("image to text R@1", "image_to_text_r1"),
    ("image to text R@10", "image_to_text_r10"),
)


def publish_embedded(run: Path, out: Path, *, seconds: Mapping[str, float], processors: int) -> Manifest:
    """Write the embedded bundle from the recipe's INT8 bundle and the reports beside it.

    Args:
        run: folder of the recipe with `int8`, the four evaluation reports, and on demand `NOTES.md`: what
            the reader of the card must know of this run, above all where it left the recipe, and
            `EXAMPLES.md`: bags that it tells apart and bags that it does not.
        out: bundle folder to make or replace.
        seconds: of each step of the recipe; empty where they are not known, and the card then gives no times.
        processors: of the machine.

    Returns:
        The manifest written.

    Raises:
        DataError: a report is missing.
        BundleError: the INT8 bundle is damaged, or `out` is not a bundle.
    """
    reports = {
        (bundle, split): _report(run / f"{bundle}-{split}.json")
        for bundle in ("fp32", "int8")
        for split in ("val", "coco_val100")
    }
    machine = f"{processors} x {_processor()}, {platform.system()} {platform.machine()}"
    commit = git_commit()
    figures = {
        f"{bundle} {split}": {key: report[key] for _, key in _SHOWN if key in report}
        for (bundle, split), report in reports.items()
    }
    card = Template((Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")).substitute(
        figures=_figures_table(figures),
        seconds=_seconds_table(seconds),
        total=f": {sum(seconds.values()) / 60:.0f} minutes in all" if seconds else "",
        notes=_written(run / "NOTES.md"),
        examples=_written(run / "EXAMPLES.md"),
        machine=machine,
        commit=commit,
        sizes=_sizes_table(run / "int8"),
    )
    with open_bundle(run / "int8") as source, staged_bundle(out, overwrite=True) as scratch:
        files: dict[str, bytes | Path] = {path: source.path(path) for path in source.manifest.files}
        fields = source.manifest.to_fields()
        fields["metrics"] = {**fields.get("metrics", {}), "evaluate": figures}
        fields["source"] = {**fields.get("source", {}), "recipe": "make train-embedded", "commit": commit}
        fields["licence"] = LICENCE
        return write_bundle(scratch, fields, {**files, CARD: card.encode()})


def _report(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the evaluation {path} is missing or damaged: run the recipe again ({error})"
        ) from error


def _written(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def _figures_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(figures)
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for label, key in _SHOWN:
        cells = [f"{figures[column][key]:.4g}" if key in figures[column] else "" for column in columns]
        if any(cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seconds_table(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    rows = [f"| {name} | {value / 60:.1f} |" for name, value in seconds.items()]
    return "\n".join(["| step | minutes |", "|---|---:|", *rows, "", ""])


def _sizes_table(bundle: Path) -> str:
    files = sorted(path for path in bundle.iterdir() if path.is_file())
    rows = [f"| {path.name} | {path.stat().st_size / 2**20:.2f} |" for path in files]
    return "\n".join(["| file | MiB |", "|---|---:|", *rows])
