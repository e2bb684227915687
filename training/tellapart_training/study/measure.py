"""Captions and figures of every finished run of the study, gathered into one file for reports."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tellapart.errors import DataError
from tellapart.truematch import read_benchmark
from tellapart_training.data import CaptionRecord, read_captions
from tellapart_training.images import ImageSource, say_on_stderr
from tellapart_training.judged import Judges
from tellapart_training.run_folder import git_commit, write_atomically
from tellapart_training.study.captions import captions_for, features_of
from tellapart_training.study.rows import ROWS, SEEDS, Places, Row

BENCHMARK = Path("benchmarks/flickr8k-val")
HUMAN = "human"
_TIMES = ("sampling", "scoring", "backward", "other")


def measure(places: Places, out: Path) -> None:
    """Caption both validation sets with every finished run, score all captions, write the figures.

    Args:
        places: of the study.
        out: the figures as JSON; runs that are not finished are left out and named.

    Raises:
        DataError: no finished run, or data that cannot be used.
    """
    every = [(row, seed) for seed in SEEDS for row in ROWS]
    finished = [(row, seed) for row, seed in every if _is_finished(places.run / f"{row.name}-{seed}")]
    if not finished:
        raise DataError(f"{places.run} holds no finished run: `study run` first")
    absent = [f"{row.name}-{seed}" for row, seed in every if (row, seed) not in finished]
    if absent:
        say_on_stderr(f"not finished and left out: {', '.join(absent)}")
    rows: dict[str, Any] = {HUMAN: {"title": "human captions, one against four", "runs": []}}
    rows.update({row.name: {"title": row.title, "runs": []} for row in ROWS})
    facts: dict[str, Any] = {}
    for split, folder in (("val", "flickr8k"), ("coco_val100", "coco_val100")):
        records = [record for record in read_captions(places.data / folder / "captions.jsonl")
                   if split != "val" or record.split == "val"]  # fmt: skip
        source = ImageSource(places.data / folder / "images.tar")
        judges = _judges(places, source, records, benchmark=split == "val")
        facts[split] = judges.facts()
        names = [record.image for record in records]
        references = [record.captions for record in records]
        few = [record.image for record in records if len(record.captions) <= len(SEEDS)]
        if few:
            raise DataError(
                f"{places.data / folder}: the row of human captions needs more than {len(SEEDS)} captions of "
                f"every image, and {few[0]} has fewer"
            )
        features = features_of(
            source, names, trunk=places.embedded / "trunk-int8", start=places.embedded / "heads/last",
            cache=places.run / "cache",
        )  # fmt: skip
        # Each of five writers in turn against the other four, as often as the study has seeds.
        for seed in SEEDS:
            others = [[text for turn, text in enumerate(texts) if turn != seed] for texts in references]
            figures = judges.figures(names, [texts[seed] for texts in references], others)
            _run_of(rows[HUMAN], seed)[split] = figures
        for row, seed in finished:
            folder_of_run = places.run / f"{row.name}-{seed}"
            captions = captions_for(
                folder_of_run / "last", names, features, out=folder_of_run / f"captions-{split}.json"
            )
            figures = judges.figures(names, captions, references)
            _run_of(rows[row.name], seed)[split] = figures
            say_on_stderr(f"{row.name}-{seed} {split}: CIDEr-D {figures['cider_d']:.3f}")
    results = {
        "commit": git_commit(), "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "judged": facts, "rows": {name: row for name, row in rows.items() if row["runs"]},
        "training": _speeds(places, finished),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(results, indent=1) + "\n")
    say_on_stderr(f"{out}: {len(finished)} runs")


def _judges(places: Places, source: ImageSource, records: list[CaptionRecord], *, benchmark: bool) -> Judges:
    return Judges.open(
        {"scorer": places.scorer, "judge": places.run / "judge/best"},
        images=source, names=[record.image for record in records], cache=places.run / "cache",
        benchmark=read_benchmark(BENCHMARK) if benchmark else None,
        language_model=places.run / "language/best",
    )  # fmt: skip


def _run_of(row: dict[str, Any], seed: int) -> dict[str, Any]:
    runs: list[dict[str, Any]] = row["runs"]
    for run in runs:
        if run["seed"] == seed:
            return run
    runs.append({"seed": seed})
    return runs[-1]


def _is_finished(run: Path) -> bool:
    try:
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and bool(facts.get("finished"))


def _speeds(places: Places, finished: Sequence[tuple[Row, int]]) -> dict[str, dict[str, float]]:
    """Mean speed over the seeds of each row that was trained on a reward."""
    speeds: dict[str, dict[str, float]] = {}
    for row in ROWS:
        found = [_speed(places.run / f"{row.name}-{seed}") for each, seed in finished if each is row]
        known = [speed for speed in found if speed is not None]
        if row.settings and known:
            speeds[row.name] = {key: _mean([speed[key] for speed in known]) for key in known[0]}
    return speeds


def _speed(run: Path) -> dict[str, float] | None:
    """Steps a second and where their time went, over the second half of a run, warmed up; None: too short."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    steps = [entry for entry in map(json.loads, lines) if entry["kind"] == "train"]
    # Half of one entry, or a metrics file from before times were logged, tells no speed.
    late = [entry for entry in steps[len(steps) // 2 :] if all(f"time_{part}" in entry for part in _TIMES)]
    if len(late) < 2:
        return None
    seconds = late[-1]["elapsed_s"] - late[0]["elapsed_s"]
    if seconds <= 0:
        return None
    shares = {f"time_{part}": _mean([entry[f"time_{part}"] for entry in late]) for part in _TIMES}
    return {"steps_per_s": (late[-1]["step"] - late[0]["step"]) / seconds, **shares}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
