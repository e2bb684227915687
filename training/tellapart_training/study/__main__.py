"""`python -m tellapart_training.study run|measure|report|examples`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tellapart.errors import ConfigError, MissingExtraError, TellapartError, UsageError
from tellapart_training.study.report import plot, read_results, tables
from tellapart_training.study.rows import (
    ROWS,
    Places,
    bag_steps,
    blend_steps,
    judge_steps,
    mle_steps,
    reward_steps,
)

RESULTS = Path("docs/study/results.json")
PLOT = Path("docs/study/r1_against_cider.svg")
BENCHMARK = Path("benchmarks/flickr8k-val")


def main(argv: Sequence[str] | None = None) -> int:
    """Do one verb; 0 done, 1 something failed, 2 wrong usage or a missing extra."""
    arguments = _parser().parse_args(argv)
    try:
        _VERBS[arguments.verb](arguments)
    except TellapartError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2 if isinstance(error, (UsageError, MissingExtraError, ConfigError)) else 1
    return 0


def _run(arguments: argparse.Namespace) -> None:
    from tellapart_training.steps import run_commands

    if arguments.workers < 1:
        raise UsageError(f"--workers must be at least 1, got {arguments.workers}")
    rows = [row for row in ROWS if row.name in arguments.rows]
    places = replace(_places(arguments), rows=rows, changes=arguments.set)
    log = places.run / "study.json"
    # One command at a time while it wants all cores; the rows then share them, which wastes less.
    run_commands([*bag_steps(places), *blend_steps(places), *judge_steps(places)], log=log)
    run_commands(mle_steps(places), log=log, workers=arguments.workers)
    run_commands(reward_steps(places), log=log, workers=arguments.workers)


def _measure(arguments: argparse.Namespace) -> None:
    from tellapart_training.study.measure import measure

    measure(_places(arguments), arguments.results)


def _report(arguments: argparse.Namespace) -> None:
    results = read_results(arguments.results)
    print(tables(results))
    plot(results, arguments.plot)
    print(f"wrote {arguments.plot}", file=sys.stderr)


def _examples(arguments: argparse.Namespace) -> None:
    from tellapart.truematch import read_benchmark, read_captions_file
    from tellapart_training.images import ImageSource
    from tellapart_training.scorer import open_scorer
    from tellapart_training.study.examples import embed_bag_images, examples_page, find_examples

    if arguments.count < 1:
        raise UsageError(f"--count must be at least 1, got {arguments.count}")
    before, after = read_captions_file(arguments.before), read_captions_file(arguments.after)
    places, benchmark = _places(arguments), read_benchmark(arguments.benchmark)
    judge = open_scorer(arguments.judge or places.run / "judge/best")
    images = ImageSource(arguments.images or places.data / "flickr8k/images.tar")
    rows = embed_bag_images(benchmark, arguments.size, judge, images, cache=places.run / "cache")
    found = find_examples(
        before, after, benchmark=benchmark, size=arguments.size, judge=judge, image_rows=rows
    )
    record = found.to_record(count=arguments.count)
    print(json.dumps(record, ensure_ascii=False) if arguments.json else examples_page(record), end="")
    if arguments.json:
        print()


def _places(arguments: argparse.Namespace) -> Places:
    return Places(arguments.data, arguments.run, arguments.embedded)


_VERBS = {"run": _run, "measure": _measure, "report": _report, "examples": _examples}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tellapart_training.study", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    places.add_argument("--run", type=Path, default=Path("runs/study"), help="folder of the study's runs")
    places.add_argument(
        "--embedded", type=Path, default=Path("runs/embedded"), help="run of `make train-embedded`"
    )
    run = verbs.add_parser("run", parents=[places], help="train what is missing")
    run.add_argument("--workers", type=int, default=1, help="rows trained at once")
    names = [row.name for row in ROWS]
    run.add_argument(
        "--rows", nargs="+", choices=names, default=names, metavar="ROW",
        help=f"rows to train, with those they start from (default: all of {', '.join(names)})",
    )  # fmt: skip
    run.add_argument(
        "--set", action="append", default=[], metavar="STAGE.KEY=VALUE",
        help="another value of a setting in every row of a stage, mle or reinforce; for another budget",
    )  # fmt: skip
    measure = verbs.add_parser("measure", parents=[places], help="caption and score every finished run")
    measure.add_argument("--results", type=Path, default=RESULTS, help="figures to write")
    report = verbs.add_parser("report", help="print the tables and draw the plot")
    report.add_argument("--results", type=Path, default=RESULTS, help="figures to read")
    report.add_argument("--plot", type=Path, default=PLOT, help="SVG to write")
    examples = verbs.add_parser(
        "examples", parents=[places], help="bags that training told apart, and bags that still fail"
    )
    for name in ("before", "after"):
        examples.add_argument(
            f"--{name}", type=Path, required=True, metavar="FILE", help='captions, {"image": "caption"}'
        )
    examples.add_argument("--benchmark", type=Path, default=BENCHMARK, metavar="DIR", help="bags")
    examples.add_argument("--images", type=Path, metavar="DIR|TAR", help="photos (default: of Flickr8k)")
    examples.add_argument("--judge", type=Path, metavar="CHECKPOINT", help="default: RUN/judge/best")
    examples.add_argument("--size", type=int, default=5, metavar="K", help="of the bags (default: 5)")
    examples.add_argument("--count", type=int, default=3, metavar="N", help="bags of each kind (default: 3)")
    examples.add_argument("--json", action="store_true", help="one JSON object instead of Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main())
