"""Ours against what people would use instead: same weights, same photos, same number of tokens, in turns.

    make bench-peers
    python benchmarks/peers/compare.py FOLDER --photos samples/photos --ours PYTHON --theirs PYTHON

Each captioner is a process of its own (runner.py) that stays open and captions when its turn comes, so that a
machine that drifts drifts for all. In its turn each captions once untimed and once timed; a turn in which
other processes had more than 15 % of the cores is left out. Cold starts are processes of their own, from
start to first caption. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PEERS = {
    "tellapart-int8": "tellapart INT8",
    "tellapart-int8-spin": "tellapart INT8, --spin",
    "tellapart-fp32": "tellapart FP32",
    "eager": "transformers eager FP32",
    "optimum-int8": "optimum ONNX Runtime INT8",
    "optimum-int8-no-spin": "the same, spinning stopped",
    "openvino-int8": "optimum-intel OpenVINO INT8",
}
HERE = Path(__file__).parent
_FOREIGN_SHARE = 0.15
_LEAST_TURNS = 5
"""Where a captioner has fewer turns to itself, all are taken, and the table says so."""


class Runner:
    """One captioner's process."""

    def __init__(self, peer: str, folder: Path, python: str) -> None:
        """Start it, and wait until it is ready."""
        self.name = peer
        self.started_s = time.perf_counter()
        rooms = str(HERE.parents[1] / "sdk") if peer.startswith("tellapart") else ""
        self.process = subprocess.Popen(
            [python, str(HERE / "runner.py"), peer, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": rooms, "OMP_NUM_THREADS": "2"},
        )
        self.ready = self._read()

    def ask(self, line: str) -> dict[str, Any]:
        """One question and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """Close its stdin and wait."""
        self.process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        words = self.process.communicate()[1].strip().splitlines()
        raise SystemExit(f"{self.name} ended: {words[-1] if words else 'no word'}")


def processor_s(pid: int | None = None) -> float:
    """Seconds that all processes, or one, spent on the processors."""
    if pid is None:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        return (sum(map(int, fields)) - int(fields[3]) - int(fields[4])) / os.sysconf("SC_CLK_TCK")
    after = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(after[11]) + int(after[12])) / os.sysconf("SC_CLK_TCK")


def compare(
    folder: Path, photos: list[Path], pythons: dict[str, str], rounds: int, starts: int
) -> dict[str, Any]:
    """Measure one size.

    Returns:
        Per peer: `ms` (pixels to tokens), `preprocess_ms`, `cold_s`, `peak_rss_mib`, `installed_mib`, `same`
        (photos whose tokens are those of eager).
    """
    found: dict[str, Any] = {peer: {"turns": [], "cold_s": [], "tokens": {}} for peer in pythons}
    for turn in range(starts):
        for peer, python in pythons.items():
            runner = Runner(peer, folder, python)
            runner.ask(str(photos[turn % len(photos)]))
            found[peer]["cold_s"].append(time.perf_counter() - runner.started_s)
            runner.end()
    runners = [Runner(peer, folder, python) for peer, python in pythons.items()]
    for runner in runners:
        found[runner.name]["installed_mib"] = runner.ask("installed")["installed_mib"]
        found[runner.name]["versions"] = runner.ready["versions"]
        for photo in photos[:2]:
            runner.ask(str(photo))
    left_out = 0
    for turn in range(rounds):
        photo = str(photos[turn % len(photos)])
        for runner in runners if turn % 2 == 0 else reversed(runners):
            runner.ask(photo)  # not timed: what the one before left in the caches is nobody's merit
            before = (processor_s(), processor_s(runner.process.pid), time.perf_counter())
            answer = runner.ask(photo)
            wall_s = time.perf_counter() - before[2]
            foreign_s = processor_s() - before[0] - processor_s(runner.process.pid) + before[1]
            page = found[runner.name]
            page["tokens"][photo] = answer["tokens"]
            page["peak_rss_mib"] = answer["peak_rss_mib"]
            quiet = foreign_s <= _FOREIGN_SHARE * wall_s + 0.02  # the kernel counts in steps of 10 ms
            page["turns"].append((quiet, answer["caption_ms"], answer["preprocess_ms"]))
    for runner in runners:
        runner.end()
    pages = list(found.values())
    enough = all(sum(quiet for quiet, *_ in page["turns"]) >= _LEAST_TURNS for page in pages)
    for page in pages:
        kept = [turn for turn in page["turns"] if turn[0] or not enough]
        page["ms"], page["preprocess_ms"] = [turn[1] for turn in kept], [turn[2] for turn in kept]
        left_out += len(page["turns"]) - len(kept)
    for page in found.values():
        same = [page["tokens"][photo] == tokens for photo, tokens in found["eager"]["tokens"].items()]
        page["same"] = f"{sum(same)}/{len(same)}"
    return {"peers": found, "left_out": left_out, "quiet": enough}


def table(size: str, measured: dict[str, Any]) -> str:
    """Markdown."""
    peers = measured["peers"]
    ours = statistics.median(peers["tellapart-int8"]["ms"])
    lines = [
        f"**{size}**",
        "",
        "| | ms a caption, median (5 % to 95 %) | ours is faster by | preprocess ms | cold start s | "
        "peak MiB | installed MiB | tokens as eager |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for peer, page in peers.items():
        ms = sorted(page["ms"])
        low, high = ms[int(0.05 * (len(ms) - 1))], ms[round(0.95 * (len(ms) - 1))]
        lines.append(
            f"| {PEERS[peer]} | {statistics.median(ms):.1f} ({low:.1f} to {high:.1f}) "
            f"| {statistics.median(ms) / ours:.1f} x | {statistics.median(page['preprocess_ms']):.1f} "
            f"| {statistics.median(page['cold_s']):.2f} | {page['peak_rss_mib']:.0f} "
            f"| {page['installed_mib']:.0f} | {page['same']} |"
        )
    rounds = max(len(page["ms"]) for page in peers.values())
    note = f"{measured['left_out']} turns left out as others used the machine"
    if not measured["quiet"]:
        note = "others used the machine in most turns, so only the ratios say something"
    lines += ["", f"{rounds} rounds; {note}."]
    return "\n".join(lines)


def main() -> int:
    """Convert what is missing, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--ours", default=sys.executable, help="Python of the SDK's environment")
    parser.add_argument("--theirs", required=True, help="Python of the peers' environment")
    parser.add_argument("--size", nargs="+", default=["compact", "vit-gpt2"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--starts", type=int, default=3, help="cold starts of each")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--json", type=Path, help="write all samples here")
    args = parser.parse_args()
    photos = sorted(args.photos.glob("*.jpg"))
    pythons = {peer: args.ours if peer.startswith("tellapart") else args.theirs for peer in args.peers}
    everything = {}
    for size in args.size:
        for peer in ("optimum-int8", "openvino-int8"):
            if peer in pythons:
                command = [args.theirs, str(HERE / "runner.py"), peer, str(args.folder / size), "--convert"]
                subprocess.run(command, check=True, stdout=sys.stderr)
        everything[size] = compare(args.folder / size, photos, pythons, args.rounds, args.starts)
        print(table(size, everything[size]) + "\n", flush=True)
    seen = {name: version for page in everything.values() for peer in page["peers"].values()
            for name, version in peer["versions"].items()}  # fmt: skip
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor()
    )  # fmt: skip
    print(f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}; "
          + ", ".join(f"{name} {version}" for name, version in sorted(seen.items())))  # fmt: skip
    if args.json is not None:
        args.json.write_text(json.dumps(everything), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
