"""`python -m tellapart_training.study run|measure|report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tellapart.errors import TellapartError
from tellapart_training.study.report import plot, read_results, tables
from tellapart_training.study.rows import Places, bag_steps, judge_steps, mle_steps, reward_steps

RESULTS = Path("docs/study/results.json")
PLOT = Path("docs/study/r1_against_cider.svg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 done, 1 something failed."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.verb == "report":
            results = read_results(arguments.results)
            print(tables(results))
            plot(results, arguments.plot)
            print(f"wrote {arguments.plot}", file=sys.stderr)
            return 0
        places = Places(arguments.data, arguments.run, arguments.embedded)
        if arguments.verb == "run":
            from tellapart_training.steps import run_commands

            log = places.run / "study.json"
            # One command at a time while it wants all cores; the rows then share them, which wastes less.
            run_commands([*bag_steps(places), *judge_steps(places)], log=log)
            run_commands(mle_steps(places), log=log, workers=arguments.workers)
            run_commands(reward_steps(places), log=log, workers=arguments.workers)
        else:
            from tellapart_training.study.measure import measure

            measure(places, arguments.results)
    except TellapartError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tellapart_training.study", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, text in (("run", "train what is missing"), ("measure", "caption and score every finished run")):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("--data", type=Path, default=Path("../shared/data"))
        verb.add_argument("--run", type=Path, default=Path("runs/study"))
        verb.add_argument("--embedded", type=Path, default=Path("runs/embedded"))
        if name == "run":
            verb.add_argument("--workers", type=int, default=1, help="rows trained at once")
        else:
            verb.add_argument("--results", type=Path, default=RESULTS)
    report = verbs.add_parser("report", help="print the tables and draw the plot")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--plot", type=Path, default=PLOT)
    return parser


if __name__ == "__main__":
    sys.exit(main())
