"""`tellapart search`: the images of a folder that fit a sentence, best first."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from tellapart.backends.threads import count_workers
from tellapart.commands.choices import runtime_options
from tellapart.commands.outputs import say
from tellapart.commands.progress import Progress
from tellapart.errors import UsageError
from tellapart.retriever import Retriever
from tellapart.search import open_index

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Search; 1 where images of the folder could not be looked at.

    Raises:
        TellapartError: no such folder, the bundle, the runtime.
    """
    if args.top < 1:
        raise UsageError(f"--top must be an integer of at least 1, got {args.top}")
    runtime, workers = runtime_options(args), 1
    if runtime.threads == "auto":  # a core for each image beats several for one
        runtime, workers = replace(runtime, threads=1), count_workers()
    with Retriever.open(args.model, runtime=runtime) as retriever:
        # How many images are new shows with the first of them.
        with Progress(0) as progress:
            index = open_index(args.folder, retriever, progress=progress.at, workers=workers)
        if index.embedded:
            say(f"{index.embedded} images looked at, {len(index.names)} in the index")
        for name, message in index.failures.items():
            say(f"{args.folder / name}: {message}")
        matches = retriever.search(args.query, index, top=args.top)
    if args.json:
        found = [
            {"image": str(args.folder / match.name), "score": round(match.score, 6)} for match in matches
        ]
        print(json.dumps({"query": args.query, "model": index.model_sha256, "matches": found}))
    else:
        for match in matches:
            print(f"{match.score:+.3f}  {args.folder / match.name}")
    return 1 if index.failures else 0
