"""Where things are kept that can be made again: indexes of folders, measured numbers of threads."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_cache_dir"]


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/tellapart`, or `~/.cache/tellapart` where that is unset or not absolute."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tellapart"
