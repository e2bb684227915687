"""Try a frozen app where nothing of this checkout can be found: its size, its start, one caption.

python apps/freeze/check.py build/desktop/tellapart-desktop
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLE = Path(__file__).parents[2] / "samples" / "photos" / "cameraman.jpg"


def main(argv: list[str] | None = None) -> int:
    """Print what was found as JSON; 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(description="Try a frozen app.")
    parser.add_argument("app", type=Path, help="folder that PyInstaller made")
    parser.add_argument("--max-mib", type=float, default=238.0)  # 250 MB
    parser.add_argument("--max-window-s", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    program = args.app.resolve() / args.app.name
    size = sum(path.lstat().st_size for path in args.app.rglob("*") if path.is_file()) / 2**20
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT")
    plain = {name: os.environ[name] for name in kept if name in os.environ}
    windows, record = [], {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            started_s = time.monotonic()
            done = subprocess.run(
                [program, "--try", SAMPLE.resolve()],
                cwd=scratch,
                env={**plain, "QT_QPA_PLATFORM": "offscreen"},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
        if done.returncode != 0:
            print(f"the app failed ({done.returncode}): {done.stderr.strip()[-2000:]}", file=sys.stderr)
            return 1
        record = json.loads(done.stdout.splitlines()[-1])
        # Its own clock starts with Python; what came before, unpacking and loading, counts as well.
        before_s = time.monotonic() - started_s - record["ended_s"]
        windows.append(record["window_s"] + max(0.0, before_s))
    found = {
        "size_mib": round(size, 1),
        "window_s": {"first": round(windows[0], 2), "median": round(statistics.median(windows), 2)},
        "first_caption_s": record["caption_s"],
        "caption": record["caption"],
    }
    print(json.dumps(found))
    kept_all = size <= args.max_mib and found["window_s"]["median"] <= args.max_window_s
    return 0 if kept_all else 1


if __name__ == "__main__":
    sys.exit(main())
