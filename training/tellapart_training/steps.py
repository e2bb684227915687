"""Long work as a list of `tellapart` commands that a reader could type by hand.

Each command runs in a process of its own and is skipped when what it makes is there, so the list resumes
where it was stopped; a training command goes on from its newest state.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tellapart.errors import DataError
from tellapart_training.run_folder import git_commit, write_atomically


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: key in the log.
        makes: file or folder that is there when the step is done.
        argv: arguments of `python -m tellapart`.
        trains: the folder is a run, to be resumed while its run.json does not say that it is finished.
    """

    name: str
    makes: Path
    argv: Sequence[str]
    trains: bool = False

    def is_done(self) -> bool:
        """Whether the step has nothing left to do."""
        if not self.trains:
            return self.makes.exists()
        try:
            facts = json.loads((self.makes / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(facts.get("finished"))


def run_commands(steps: Sequence[Step], *, log: Path, workers: int = 1) -> dict[str, float]:
    """Run every step that is not done, in order.

    Args:
        steps: the commands.
        log: JSON file of each step's seconds and the commit; what it says of earlier calls is kept.
        workers: commands at once; more than one only where no step needs what another makes.

    Returns:
        Seconds of each step that was ever run, by name.

    Raises:
        DataError: a step failed; the steps before it stay done, those after it are not begun.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = json.loads(log.read_text(encoding="utf-8"))["seconds"] if log.exists() else {}
    writing = threading.Lock()
    failed: list[str] = []
    environment = dict(os.environ)
    if workers > 1:
        # Left alone, every command starts a thread for each core, and they wait for one another.
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

    def run(number: int, step: Step) -> None:
        title = f"[{number}/{len(steps)}] {step.name}"
        if failed:
            return
        if step.is_done():
            print(f"{title}: done before", file=sys.stderr)
            return
        again = ["--resume"] if step.trains and step.makes.exists() else []
        print(f"{title}: tellapart {' '.join([*step.argv, *again])}", file=sys.stderr, flush=True)
        started_s = time.monotonic()
        command = [sys.executable, "-m", "tellapart", *step.argv, *again]
        done = subprocess.run(command, check=False, env=environment)
        with writing:
            seconds[step.name] = round(seconds.get(step.name, 0.0) + time.monotonic() - started_s, 1)
            write_atomically(log, json.dumps({"seconds": seconds, "commit": git_commit()}, indent=1) + "\n")
            if done.returncode:
                failed.append(f"step {step.name!r} ended with status {done.returncode}")

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(run, number, step) for number, step in enumerate(steps, start=1)]:
            future.result()
    if failed:
        raise DataError(f"{'; '.join(failed)}: mend what it says, run this again")
    return seconds
