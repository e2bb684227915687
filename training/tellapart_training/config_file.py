"""TOML files, `--set` overrides and plain dicts, to and from the dataclasses of `config`.

Unknown keys are refused with the nearest known name, because a misspelt key that is silently ignored costs
a night of training.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tellapart.errors import ConfigError
from tellapart_training.config import STAGES, InitConfig, ReinforceConfig, TrainConfig
from tellapart_training.presets import merged, parse_toml, read_preset

ConfigT = TypeVar("ConfigT")


def config_from_dict(kind: type[ConfigT], values: Mapping[str, Any], *, where: str = "") -> ConfigT:
    """Build a config dataclass from plain values.

    Args:
        kind: a dataclass of this module.
        values: as a TOML reader gives them; tables are mappings.
        where: dotted name of the table, for messages.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a wrong type, or a broken rule.
    """
    hints = typing.get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if key not in known:
            raise ConfigError(f"unknown key {name!r}: {_suggestion(key, known)}")
        arguments[key] = _checked(hints[key], value, name)
    return kind(**arguments)


def _suggestion(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"


def _checked(hint: Any, value: Any, name: str) -> Any:
    """The value as the annotation wants it, or a ConfigError."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} must be a table, got {value!r}: write it as [{name}]")
        return config_from_dict(hint, value, where=name)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} must be a list, got {value!r}")
        return tuple(_checked(item, each, f"{name}[{index}]") for index, each in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int in Python; `epochs = true` is a slip, not a number.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} must be {hint.__name__}, got {type(value).__name__} {value!r}")
    return value


def load_config(path: Path, *, stage: str, overrides: Sequence[str] = ()) -> TrainConfig | InitConfig:
    """Read a TOML file and `--set` overrides into the stage's config.

    Args:
        path: TOML file.
        stage: `init`, `warmup`, `mle`, `retriever`, `reinforce` or `grammar`.
        overrides: `dotted.name=value`; the value is TOML, or a plain string where it is not.

    Raises:
        ConfigError: file unreadable, not TOML, or not what the stage expects.
    """
    try:
        values = parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the config {path}: {error.strerror}; give an existing TOML file"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}; correct that line") from error
    for override in overrides:
        _apply_override(values, override)
    try:
        if "preset" in values and STAGES[stage] is ReinforceConfig:
            values = merged(read_preset(values["preset"]), values)
        return config_from_dict(STAGES[stage], values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {override!r} must look like optimizer.lr=0.001")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()
    table = values
    *parents, last = name.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a table")
    table[last] = value


def config_to_dict(config: object) -> dict[str, Any]:
    """The config as plain dicts, lists and scalars."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(config))))  # type: ignore[call-overload]


def config_to_toml(config: object) -> str:
    """The resolved config as TOML that `load_config` reads back to an equal config."""
    lines: list[str] = []
    _write_table(config_to_dict(config), "", lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _write_table(values: Mapping[str, Any], name: str, lines: list[str]) -> None:
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    if name:
        lines.extend(["", f"[{name}]"])
    lines.extend(f"{key} = {toml_value(value)}" for key, value in values.items() if key not in tables)
    for key, value in tables.items():
        _write_table(value, f"{name}.{key}" if name else key, lines)


def toml_value(value: Any) -> str:
    """A plain value as TOML on one line, as `--set` takes it."""
    # JSON scalars are valid TOML values, escapes included; tables in a list are written inline.
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Dotted names whose values differ between two plain configs."""
    names: list[str] = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            names.extend(changed_keys(before, after, prefix=f"{prefix}{key}."))
        elif before != after:
            names.append(f"{prefix}{key}")
    return names
