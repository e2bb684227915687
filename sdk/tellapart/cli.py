"""The command `tellapart`: argparse, exit statuses, and nothing heavy until a verb asks for it.

    0    done
    1    a promise not kept: verification, parity, budget, or some images failed
    2    usage, or an extra that is not installed
    130  Ctrl-C
    141  whoever read our output went away (128 + SIGPIPE, as shells count)

Results go to stdout, everything else to stderr. The verbs of this package live in `tellapart.commands`;
export, quantize, train and evaluate belong to other packages and are reached by name, at the moment they
are asked for, so that a device without them loses nothing.
"""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from tellapart.commands.arguments import ELSEWHERE, build_parser, verbs_of
from tellapart.errors import ConfigError, MissingExtraError, TellapartError, UsageError

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]

EXIT_DONE, EXIT_BROKEN_PROMISE, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; None takes those of the process.

    Returns:
        The exit status, see the top of this file. Never raises for what a user can meet.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal cannot spell must not end a run; JSON carries it exactly.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: --help, --version, a wrong argument
        return stop.code if isinstance(stop.code, int) else EXIT_DONE if stop.code is None else EXIT_USAGE
    except KeyboardInterrupt:
        print("\ntellapart: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at the end, so stdout goes nowhere now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:  # a disk that is full or may not be written; what is read has its own errors
        print(f"tellapart: {error}", file=sys.stderr)
        return EXIT_BROKEN_PROMISE
    except TellapartError as error:
        print(f"tellapart: {type(error).__name__}: {error}", file=sys.stderr)
        usage = isinstance(error, (UsageError, MissingExtraError, ConfigError))
        return EXIT_USAGE if usage else EXIT_BROKEN_PROMISE
    return status


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in ELSEWHERE:
        # Before argparse, which would read the options of the other package as ours.
        return _hand_on(arguments[0], arguments[1:])
    parser = build_parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    _suggest(parser, arguments)
    args = parser.parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        format="tellapart: %(message)s",
        level=logging.INFO if args.verbose else logging.WARNING,
    )
    run = cast("Callable[[argparse.Namespace], int]", importlib.import_module(args.module).run)
    return run(args)


def _suggest(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """End with the nearest verb where one was mistyped; argparse alone would recite them all."""
    verbs = verbs_of(parser)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        near = difflib.get_close_matches(arguments[0], verbs, n=1, cutoff=0.75)
        if near:
            raise UsageError(f"there is no `tellapart {arguments[0]}`; did you mean `tellapart {near[0]}`?")


def _hand_on(verb: str, arguments: list[str]) -> int:
    """Let another package answer; a dependency that it misses becomes one sentence."""
    elsewhere = ELSEWHERE[verb]
    try:
        answer = cast("Callable[[list[str]], int]", importlib.import_module(elsewhere.module).main)
        return answer([*elsewhere.prefix, *arguments])
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.startswith("tellapart"):
            raise  # a slip of ours, not an absent dependency
        raise MissingExtraError(
            elsewhere.extra, f"`tellapart {verb}` needs {missing}, which is not installed"
        ) from error
