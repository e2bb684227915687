"""The one version string; `pyproject.toml` and every other place read it from here."""

from __future__ import annotations

__version__ = "0.1.0"
