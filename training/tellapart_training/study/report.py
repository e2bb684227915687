"""Tables and plot of the study from its saved figures alone; nothing here trains or loads a network."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tellapart.errors import DataError, MissingExtraError
from tellapart_training.run_folder import write_atomically

SPLITS = {"val": "Flickr8k `val`, 1,000 photos", "coco_val100": "COCO `coco_val100`, 100 photos"}
# Key, heading, factor, decimals; a split without the key leaves the column out.
COLUMNS = (
    ("judge.judge.rd100", "RD100 judge", 100, 1),
    ("judge.scorer.rd100", "RD100 scorer", 100, 1),
    ("judge.judge.bags_3", "R@1 of 3 judge", 100, 1),
    ("judge.judge.bags_5", "of 5 judge", 100, 1),
    ("judge.judge.bags_7", "of 7 judge", 100, 1),
    ("judge.scorer.bags_3", "R@1 of 3 scorer", 100, 1),
    ("judge.scorer.bags_5", "of 5 scorer", 100, 1),
    ("judge.scorer.bags_7", "of 7 scorer", 100, 1),
    ("cider_d", "CIDEr-D", 1, 3),
    ("chair_i", "CHAIR-i", 100, 1),
    ("chair_s", "CHAIR-s", 100, 1),
    ("fluency", "fluency", 1, 2),
    ("mean_words", "words", 1, 1),
    ("vocabulary_used", "vocabulary", 1, 0),
    ("repeated_words", "repeats", 100, 1),
    ("distinct_in_bags", "distinct in bags", 100, 1),
    ("cut", "cut", 100, 1),
)
# Row, the row it is compared with, and the figures whose differences are printed.
COMPARISONS = (
    ("sr", "mle"), ("sr-hard", "sr"), ("sr-bagcurri", "sr"), ("cider", "mle"), ("cider-sr", "cider"),
    ("cider-sr-bagcurri", "cider-sr"), ("cider-sr-bagcurri", "mle"), ("sr-coco", "sr"),
    ("mle-blended", "mle"), ("sr-blended", "sr"), ("cider-sr-blended", "cider-sr"),
    ("cider-sr-blended", "mle"),
)  # fmt: skip
COMPARED = ("judge.judge.rd100", "judge.judge.bags_5", "cider_d", "chair_i", "fluency")


def read_results(path: Path) -> dict[str, Any]:
    """The saved figures.

    Raises:
        DataError: absent or damaged.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        rows = results["rows"]
        complete = all("runs" in row and "title" in row for row in rows.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no figures of the study ({error}): run `study measure` first"
        ) from error
    if not complete:
        raise DataError(f"{path} holds rows without runs: run `study measure` again")
    return dict(results)


def tables(results: Mapping[str, Any]) -> str:
    """Every table as Markdown."""
    parts = []
    for split, title in SPLITS.items():
        parts += [f"### {title}", "", *_split_table(results["rows"], split), ""]
    parts += ["### Differences on `val`, seed by seed", "", *_comparison_table(results["rows"]), ""]
    if results.get("training"):
        parts += ["### Speed of the reward steps", "", *_speed_table(results), ""]
    return "\n".join(parts)


def _split_table(rows: Mapping[str, Any], split: str) -> list[str]:
    known = {key for row in rows.values() for run in row["runs"] for key in run.get(split, {})}
    columns = [column for column in COLUMNS if column[0] in known]
    lines = ["| row | runs | " + " | ".join(heading for _, heading, _, _ in columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    for row in rows.values():
        runs = [run[split] for run in row["runs"] if split in run]
        if runs:
            cells = [_cell([run[key] for run in runs if key in run], factor, places)
                     for key, _, factor, places in columns]  # fmt: skip
            lines.append(f"| {row['title']} | {len(runs)} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: Sequence[float], factor: float, places: int) -> str:
    """Mean over runs, with the standard deviation where there is more than one."""
    if not values:
        return ""
    text = f"{factor * mean(values):.{places}f}"
    return f"{text} ± {factor * stdev(values):.{places}f}" if len(values) > 1 else text


def differences(
    rows: Mapping[str, Any], first: str, second: str, key: str, *, split: str = "val"
) -> list[float]:
    """Figure of a row less that of another, for every seed that both have.

    Args:
        rows: of the results.
        first: name of the row.
        second: name of the row it is compared with.
        key: of the figure.
        split: of the figures.
    """
    by_seed = [
        {
            run["seed"]: run[split][key]
            for run in rows.get(name, {"runs": ()})["runs"]
            if key in run.get(split, {})
        }
        for name in (first, second)
    ]
    return [by_seed[0][seed] - by_seed[1][seed] for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]


def _comparison_table(rows: Mapping[str, Any]) -> list[str]:
    shown = [column for column in COLUMNS if column[0] in COMPARED]
    lines = ["| row less row | " + " | ".join(heading for _, heading, _, _ in shown) + " |"]
    lines.append("|---|" + "---|" * len(shown))
    for first, second in COMPARISONS:
        cells = []
        for key, _, factor, places in shown:
            found = differences(rows, first, second, key)
            each = ", ".join(f"{factor * value:+.{places}f}" for value in found)
            cells.append(f"{factor * mean(found):+.{places}f} ({each})" if found else "")
        if any(cells):
            lines.append(
                f"| {rows[first]['title']} less {rows[second]['title']} | " + " | ".join(cells) + " |"
            )
    return lines


def _speed_table(results: Mapping[str, Any]) -> list[str]:
    lines = ["| row | steps a second | sampling | scoring | backward | other |", "|---|---|---|---|---|---|"]
    for name, found in results["training"].items():
        title = results["rows"].get(name, {}).get("title", name)
        shares = [found[f"time_{part}"] for part in ("sampling", "scoring", "backward", "other")]
        cells = " | ".join(f"{100 * share:.0f} %" for share in shares)
        lines.append(f"| {title} | {found['steps_per_s']:.2f} | {cells} |")
    return lines


def plot(results: Mapping[str, Any], path: Path) -> None:
    """R@1 of the judge against CIDEr-D on `val`, one point a run, as SVG; rows without points are left out.

    Raises:
        DataError: no run has both figures.
        MissingExtraError: matplotlib is not installed.
    """
    points = {
        name: [
            (run["val"]["cider_d"], 100 * run["val"]["judge.judge.rd100"])
            for run in row["runs"]
            if {"cider_d", "judge.judge.rd100"} <= run.get("val", {}).keys()
        ]
        for name, row in results["rows"].items()
    }
    if not any(points.values()):
        raise DataError("no run has both CIDEr-D and RD100 on val, so there is nothing to draw: measure more")
    try:
        import matplotlib as mpl

        mpl.use("svg")
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError("dev", "the plot needs matplotlib, which is not installed") from error
    # Equal input, equal file: no date and no random ids.
    style: dict[Any, Any] = {"svg.hashsalt": "study", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    drawn = io.StringIO()
    with mpl.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(7, 4.6), constrained_layout=True)
        for number, (name, found) in enumerate(points.items()):
            if found:
                # A row keeps its colour and its mark, whichever others are there.
                marker = "*" if name == "human" else "osD^vP<>X"[number % 9]
                across, up = zip(*found, strict=True)
                axes.scatter(
                    across, up, label=results["rows"][name]["title"], marker=marker, color=f"C{number % 10}",
                    s=46, alpha=0.85,
                )  # fmt: skip
        axes.set_xlabel("CIDEr-D on val")
        axes.set_ylabel("RD100 recall@1 under the judge, %")
        axes.legend(loc="best", frameon=False)
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, drawn.getvalue())
