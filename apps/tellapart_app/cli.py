"""`tellapart app` and `tellapart desktop`: flags, and nothing heavy until one of them starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tellapart.errors import UsageError


def build_parser() -> argparse.ArgumentParser:
    """The flags of both."""
    parser = argparse.ArgumentParser(prog="tellapart")
    verbs = parser.add_subparsers(dest="verb", required=True)
    app = verbs.add_parser(
        "app",
        help="a page in the browser of this machine",
        description="Opens a page at 127.0.0.1 that captions, tells bags apart, searches and measures. "
        "Nothing leaves this machine; what is dropped in is deleted when the command ends.",
    )
    app.add_argument("--photos", type=Path, metavar="FOLDER", help="folder that the page may search")
    app.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 7860)")
    app.add_argument("--no-browser", action="store_true", help="do not open a browser, only say where")
    desktop = verbs.add_parser(
        "desktop",
        help="a window: drop photos in, copy alt text out",
        description="Opens a window that captions photos as they are dropped in, and tells selected ones "
        "apart.",
    )
    desktop.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="photos to begin with")
    for verb in (app, desktop):
        verb.add_argument("--model", type=Path, metavar="BUNDLE", help="bundle (default: the embedded one)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of them until it is closed; a package that is missing travels up to `tellapart.cli`."""
    args = build_parser().parse_args(argv)
    if args.verb == "desktop":
        from tellapart_app.window import run_window

        return run_window(args.photos, model=args.model)
    if args.port is not None and not 1 <= args.port <= 65535:
        raise UsageError(f"--port must be a number from 1 to 65535, got {args.port}")
    from tellapart_app.page import serve

    return serve(photos=args.photos, model=args.model, port=args.port, browser=not args.no_browser)
