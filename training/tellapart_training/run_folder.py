"""One folder a run: config.toml, config.json, run.json, metrics.jsonl, samples.jsonl, state/, best/, last/.

Lines of metrics and samples carry the step they belong to. On resuming, lines after the resumed step are cut
off, so the file reads as if the run had never been interrupted.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tellapart.errors import ConfigError
from tellapart_training.config import TrainConfig
from tellapart_training.config_file import changed_keys, config_to_dict, config_to_toml

# What may change between a run and its resumption: nothing here touches a weight.
_FREE_KEYS = ("loop.log_every", "loop.save_every", "loop.keep_states", "data.cache", "run")


class RunFolder:
    """Files of one run.

    Args:
        config: resolved.
        stage: `warmup`, `mle` or `retriever`.
        resume: go on with what is there; without it a folder that holds a run is refused.

    Raises:
        ConfigError: the folder holds a run and `resume` is False, or its config differs from this one.
    """

    def __init__(self, config: TrainConfig, *, stage: str, resume: bool) -> None:
        self.path = Path(config.run)
        self.states = self.path / "state"
        self.facts: dict[str, Any] = {}
        written = self.path / "config.json"
        settled = {"stage": stage, **config_to_dict(config)}
        if written.exists():
            if not resume:
                raise ConfigError(
                    f"{self.path} already holds a run: add --resume to go on, or choose another run folder"
                )
            before = json.loads(written.read_text(encoding="utf-8"))
            changed = [key for key in changed_keys(before, settled) if key not in _FREE_KEYS]
            if changed:
                raise ConfigError(
                    f"{self.path} was started with other values of {', '.join(changed)}: "
                    "resume with the same config, or choose another run folder"
                )
            if (self.path / "run.json").exists():
                self.facts = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        self._settled, self._toml = settled, config_to_toml(config)

    def open(self) -> None:
        """Write the resolved config and the facts of this start."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.toml", self._toml)
        write_atomically(self.path / "config.json", json.dumps(self._settled, indent=1))
        self.facts.setdefault("starts", []).append(
            {
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "git_commit": git_commit(),
                "command": sys.argv,
                "python": platform.python_version(),
                "versions": versions("torch", "accelerate", "numpy", "safetensors"),
            }
        )
        self.write_facts()

    def write_facts(self, **facts: Any) -> None:
        """Add facts to run.json."""
        self.facts.update(facts)
        write_atomically(self.path / "run.json", json.dumps(self.facts, indent=1))

    def cut_after(self, step: int) -> None:
        """Drop lines of metrics and samples that belong to later steps, and a half-written last line."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            file = self.path / name
            if not file.exists():
                continue
            kept = []
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    belongs = int(json.loads(line)["step"]) <= step
                except (ValueError, KeyError):
                    continue  # a kill in the middle of a write
                if belongs:
                    kept.append(line + "\n")
            write_atomically(file, "".join(kept))

    def log(self, entry: Mapping[str, Any], *, name: str = "metrics.jsonl") -> None:
        """Append one line and hand it to the operating system."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers and a kill see the old or the new text, never half."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def git_commit() -> str:
    """The commit the code was at, with "+" when the tree had changes; "" outside a repository."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here, capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changes else "")


def versions(*names: str) -> dict[str, str]:
    """Installed versions of distributions; "" for one that is absent."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


class Progress:
    """Lines on stderr: losses and time left; one rewritten line on a terminal, else a line now and then."""

    def __init__(self, total_steps: int, *, done_steps: int, enabled: bool, every_s: float = 20.0) -> None:
        self.total, self.first, self.enabled, self.every_s = total_steps, done_steps, enabled, every_s
        self.started_s = time.monotonic()
        self.printed_s = 0.0
        self.tty = sys.stderr.isatty()

    def show(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Say where the run is after `step` steps."""
        now = time.monotonic()
        if not self.enabled or now - self.printed_s < (0.2 if self.tty else self.every_s):
            return
        self.printed_s = now
        each = (now - self.started_s) / max(1, step - self.first)
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        left = duration((self.total - step) * each)
        line = f"epoch {epoch} step {step}/{self.total} {text} {each:.2f} s/step {left} left"
        print(
            f"\r{line}\x1b[K" if self.tty else line, end="" if self.tty else "\n", file=sys.stderr, flush=True
        )

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.enabled:
            print(f"\r{text}\x1b[K" if self.tty else text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as `1h02m` or `3m05s`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"
