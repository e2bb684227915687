"""BagCurri as data: a table of epochs, bag sizes and bands, read one epoch at a time (method 5.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from tellapart.errors import ConfigError
from tellapart_training.config import CurriculumRow


class BagFile(Protocol):
    """What this needs of a file of mined bags; `bags.TrainingBags` is one."""

    def of(self, band: str, size: int) -> Sequence[Sequence[str]]:
        """Image names of every bag of a band and a size."""


class Level(NamedTuple):
    """A row of the table as an epoch meets it."""

    number: int
    """Place in the table, from 0."""
    size: int
    band: str


def level_of(table: Sequence[CurriculumRow], epoch: int) -> Level:
    """The level of an epoch.

    Args:
        table: rows in order, each good for some epochs.
        epoch: from 0.

    Raises:
        ConfigError: the table has fewer epochs.
    """
    last = 0
    for number, row in enumerate(table):
        last += row.epochs
        if epoch < last:
            return Level(number, row.size, row.band)
    raise ConfigError(
        f"the curriculum covers {last} epochs, not epoch {epoch + 1}: add a row, or epochs to one"
    )


def known_bags(
    table: Sequence[CurriculumRow], file: BagFile, row_of: Mapping[str, int]
) -> tuple[dict[tuple[str, int], list[tuple[int, ...]]], int]:
    """The bags of each band and size that the table names, as rows of the training images.

    Args:
        table: of the run.
        file: mined bags.
        row_of: row of each training image by name.

    Returns:
        Bags by (band, size), and how many were left out because an image of theirs is not trained on, as
        the tuning images are not.

    Raises:
        ConfigError: a band and size without a bag that can be used.
    """
    found: dict[tuple[str, int], list[tuple[int, ...]]] = {}
    left_out = 0
    for row in table:
        key = (row.band, row.size)
        if key in found:
            continue
        named = file.of(*key)
        found[key] = [
            tuple(row_of[name] for name in bag) for bag in named if all(map(row_of.__contains__, bag))
        ]
        left_out += len(named) - len(found[key])
        if not found[key]:
            raise ConfigError(
                f"of {len(named)} {row.band} bags of {row.size} none holds training images alone: "
                "mine bags from the images that this run trains on"
            )
    return found, left_out
