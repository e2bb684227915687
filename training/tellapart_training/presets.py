"""Named sets of values for reward runs, as TOML files beside this one; a run's own file wins over them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from tellapart.errors import ConfigError

PRESETS = ("paper", "sr-dessi", "cider", "cider-sr", "default")


def read_preset(name: object) -> dict[str, Any]:
    """The values of a preset, as a TOML reader gives them; none for "".

    Raises:
        ConfigError: there is no such preset.
    """
    if name == "":
        return {}
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known presets are {', '.join(PRESETS)}"
        raise ConfigError(f"there is no preset {name!r}: {hint}")
    file = resources.files("tellapart_training") / "presets" / f"{name}.toml"
    return parse_toml(file.read_text(encoding="utf-8"))


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables joined key by key, `above` winning; lists are replaced as a whole."""
    joined = dict(below)
    for key, value in above.items():
        under = joined.get(key)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        joined[key] = merged(under, value) if both else value  # type: ignore[arg-type]
    return joined


def parse_toml(text: str) -> dict[str, Any]:
    """TOML text as plain values.

    Raises:
        ValueError: not TOML.
    """
    try:
        import tomllib  # Python 3.11 and later
    except ModuleNotFoundError:  # pragma: no cover - depends on the interpreter
        import tomli as tomllib  # type: ignore[no-redef,import-not-found,unused-ignore]
    return dict(tomllib.loads(text))
