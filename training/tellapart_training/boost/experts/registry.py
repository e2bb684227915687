"""Where vision experts are found: our own by name, others by the entry point `tellapart.experts`.

A factory takes an `ExpertSetting` and gives an `Expert`. Another package registers one in its pyproject.toml:

    [project.entry-points."tellapart.experts"]
    detector = "my_package:open_detector"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from tellapart.errors import UsageError
from tellapart_training.boost.experts.expert import Expert, ExpertSetting

GROUP = "tellapart.experts"
OWN = ("attributes", "captioner", "regions", "text")
"""Each in a file of its name, with a function `open_expert`."""

Factory = Callable[[ExpertSetting], Expert]


def expert_names() -> tuple[str, ...]:
    """All names that are known here, our own first."""
    return (*OWN, *sorted({point.name for point in entry_points(group=GROUP)} - set(OWN)))


def split_wanted(wanted: str) -> tuple[str, float | None]:
    """A name and the least score, out of NAME or NAME=LEAST.

    Raises:
        UsageError: the score is no number.
    """
    name, given, least = wanted.partition("=")
    try:
        return name, float(least) if given else None
    except ValueError:
        raise UsageError(f"--vision {wanted}: expected NAME or NAME=LEAST, a number") from None


def open_experts(wanted: Sequence[str], **bundles: Any) -> list[Expert]:
    """Open experts.

    Args:
        wanted: "NAME" or "NAME=LEAST" each.
        bundles: fields of `ExpertSetting` besides `least`.

    Raises:
        UsageError: nobody of that name is known.
        MissingExtraError: an expert's package is not installed.
    """
    experts = []
    for one in wanted:
        name, least = split_wanted(one)
        expert = factory(name)(ExpertSetting(least=least, **bundles))
        expert.name = name
        experts.append(expert)
    return experts


def factory(name: str) -> Factory:
    """Who opens the expert of a name.

    Raises:
        UsageError: nobody of that name is known, or its package cannot be loaded.
    """
    if name in OWN:
        return cast(Factory, import_module(f"tellapart_training.boost.experts.{name}").open_expert)
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                return cast(Factory, point.load())
            except (ImportError, AttributeError) as error:
                raise UsageError(f"the expert {name} ({point.value}) cannot be loaded: {error}") from error
    raise UsageError(f"nobody called {name} looks: choose from endpoint, {', '.join(expert_names())}")
