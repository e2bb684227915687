"""Which images an epoch of a bag curriculum shows, in which order: a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tellapart.errors import ConfigError
from tellapart_training.batches import Share, epoch_order
from tellapart_training.config import CurriculumRow
from tellapart_training.curriculum import level_of


@dataclass(frozen=True)
class BagOrder:
    """Batches of whole bags, one after another.

    A batch holds floor(batch_size / size) bags of the epoch's size; the last, smaller batch is left out. With
    several processes or accumulated parts each share holds whole bags, so that none is torn apart.

    Attributes:
        table: the curriculum.
        bags: rows of each bag, by (band, size).
        seed: of the order.
        batch_size: most images in a batch.
        accumulate: parts of a batch.
        max_steps: batches of an epoch at most; 0 takes all.
        processes: that train together.
    """

    table: Sequence[CurriculumRow]
    bags: Mapping[tuple[str, int], Sequence[tuple[int, ...]]]
    seed: int
    batch_size: int
    accumulate: int = 1
    max_steps: int = 0
    processes: int = 1

    def bags_per_share(self, epoch: int) -> int:
        """Bags in one process's share of one part of a batch.

        Raises:
            ConfigError: not even one fits.
        """
        size = level_of(self.table, epoch).size
        room = self.batch_size // (self.accumulate * self.processes)
        if room < size:
            raise ConfigError(
                f"a share of {room} images holds no bag of {size}: raise optimizer.batch_size, "
                "or lower optimizer.accumulate"
            )
        return room // size

    def bag_size(self, epoch: int) -> int:
        """Images of a bag of this epoch."""
        return level_of(self.table, epoch).size

    def level(self, epoch: int) -> int:
        """The row of the table that an epoch is in."""
        return level_of(self.table, epoch).number

    def steps(self, epoch: int) -> int:
        """Whole batches of an epoch.

        Raises:
            ConfigError: fewer bags than one batch needs.
        """
        level = level_of(self.table, epoch)
        count = len(self.bags[level.band, level.size])
        each = self.bags_per_share(epoch) * self.accumulate * self.processes
        if count < each:
            raise ConfigError(
                f"{count} {level.band} bags of {level.size} fill no batch of {each} bags: "
                "lower optimizer.batch_size, or mine more bags"
            )
        return min(count // each, self.max_steps or count)

    def rows(self, epoch: int, step: int, part: int, share: Share) -> list[int]:
        """The images of one share of a batch, bag after bag."""
        level = level_of(self.table, epoch)
        bags = self.bags[level.band, level.size]
        order = epoch_order(len(bags), self.seed, epoch)
        each = self.bags_per_share(epoch)
        start = ((step * self.accumulate + part) * share.processes + share.rank) * each
        return [row for number in order[start : start + each] for row in bags[number]]
