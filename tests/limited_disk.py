"""A program on a disk that is full: a limit on the size of a file, so that a write fails half-way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMITED = (
    "import resource, signal, sys\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
)
COMMAND = "from tellapart.cli import main\nsys.exit(main(sys.argv[1:]))\n"


def run_limited(code: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process in which no file may grow beyond 50 kB."""
    folders = ":".join(str(ROOT / name) for name in ("sdk", "training", "export", "quantization"))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED + code, *arguments],
        capture_output=True, text=True, check=False,
        env={"PYTHONPATH": folders, "PATH": "", "HOME": str(home)},
    )  # fmt: skip
