"""How many threads a graph gets when nobody says: as measured once on this machine, else by rule.

`tellapart doctor` measures, and leaves what it found in the user's cache folder (`threads.json`), by model
and number of cores; whatever opens that model later with `threads="auto"` follows it. Nothing is measured
behind anybody's back: the first caption of a fresh machine would be the one to wait for it.

The rule without a measurement: vision takes the physical cores, up to four. A decoder takes one thread
where its weights are few, because handing over a step costs more than it saves (5 MB: 573 to 538 µs), and
the same cores as vision where reading the weights is what a step waits for (130 MB: 14 to 11 ms).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tellapart.bundle import Bundle
from tellapart.cache_folder import default_cache_dir
from tellapart.manifest import GraphSpec
from tellapart.types import RuntimeOptions

__all__ = ["count_threads", "count_workers", "physical_cores", "remember", "remembered", "rule", "threads_of"]

_MOST_AUTO_THREADS = 4  # half a GFLOP of vision has no work for more
_MOST_AUTO_WORKERS = 8  # Python itself is a fifth of a caption: more would only wait for each other
_LARGE_DECODER_BYTES = 32 * 1024 * 1024
_FILE = "threads.json"


def count_threads(runtime: RuntimeOptions) -> int:
    """Threads that the options allow: what was asked for, or for "auto" the physical cores, at most four."""
    return min(physical_cores(), _MOST_AUTO_THREADS) if runtime.threads == "auto" else runtime.threads


def threads_of(bundle: Bundle, graph: GraphSpec, runtime: RuntimeOptions) -> int:
    """Threads inside one graph: what was asked for, else what was measured, else the rule at the top.

    Args:
        bundle: the open bundle.
        graph: its page in the manifest.
        runtime: what was asked for.
    """
    if runtime.threads != "auto":
        return 1 if graph.role == "text" else runtime.threads
    # Numbers outside of a graph lie beside it under its name, with another ending.
    stem = graph.file.rpartition(".")[0]
    size = sum(entry.bytes for path, entry in bundle.manifest.files.items() if path.startswith(stem))
    measured = {} if graph.role == "text" else remembered(bundle.sha256)
    return measured.get(graph.role, rule(graph.role, size))


def count_workers() -> int:
    """Images worth having under way at once on this machine: one for each core, at most eight."""
    return min(physical_cores(), _MOST_AUTO_WORKERS)


def rule(role: str, graph_bytes: int) -> int:
    """Threads of a graph where nothing was measured, see the top.

    Args:
        role: "vision", "decoder" or "text"; texts are spread over runs instead, see `Engine.spread`.
        graph_bytes: size of the graph, its weights included.
    """
    if role == "vision" or (role == "decoder" and graph_bytes >= _LARGE_DECODER_BYTES):
        return min(physical_cores(), _MOST_AUTO_THREADS)
    return 1


def remembered(model_sha256: str, *, cache_dir: Path | None = None) -> dict[str, int]:
    """What was measured for a model on as many cores; empty where nothing was, or it cannot be read."""
    try:
        page = json.loads(((cache_dir or default_cache_dir()) / _FILE).read_bytes())
        found = page[_key(model_sha256)]
        return {
            role: threads
            for role, threads in found.items()
            if role in ("vision", "decoder") and type(threads) is int and 1 <= threads <= 1024
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}


def remember(model_sha256: str, threads: Mapping[str, int], *, cache_dir: Path | None = None) -> Path | None:
    """Keep a measurement, whole or not at all.

    Args:
        model_sha256: hash of the bundle's manifest.
        threads: by role.
        cache_dir: None is the user's.

    Returns:
        The file; None where it cannot be written, which costs nobody more than the measurement.
    """
    folder = cache_dir or default_cache_dir()
    path = folder / _FILE
    try:
        page = json.loads(path.read_bytes())
    except (OSError, ValueError):
        page = None
    page = {**(page if isinstance(page, dict) else {}), _key(model_sha256): dict(threads)}
    scratch = folder / f".{_FILE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(page, indent=1), encoding="utf-8")
        os.replace(scratch, path)
    except OSError:
        with suppress(OSError):
            scratch.unlink()
        return None
    return path


def _key(model_sha256: str) -> str:
    return f"{model_sha256} on {physical_cores()} cores"


def physical_cores() -> int:
    """Cores that this process may use, two threads of one core counted once."""
    try:
        processors = os.sched_getaffinity(0)
    except AttributeError:  # not on Linux: half of what is there is near enough
        return max(1, (os.cpu_count() or 1) // 2)
    siblings = set()
    for processor in processors:
        page = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        try:
            siblings.add(page.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError):  # a container without /sys
            siblings.add(str(processor))
    return max(1, len(siblings))
