"""The bag curriculum: the paper's table, and the batches that come of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tellapart.errors import ConfigError
from tellapart_training.config import CurriculumRow, ReinforceConfig
from tellapart_training.config_file import config_from_dict
from tellapart_training.curriculum import known_bags, level_of
from tellapart_training.presets import merged, read_preset

pytest.importorskip("torch")

from tellapart_training.bag_order import BagOrder
from tellapart_training.batches import Share

pytestmark = pytest.mark.train
# Method 5.2: epochs (from 1), bag size, bags per batch, images per batch.
TABLE = [
    (1, 3, 2, 50, 100), (4, 8, 3, 33, 99), (9, 10, 5, 20, 100), (11, 12, 7, 14, 98), (13, 14, 10, 10, 100),
    (15, 17, 15, 6, 90), (18, 20, 20, 5, 100),
]  # fmt: skip


def _paper() -> ReinforceConfig:
    paths = {
        "run": "r", "init": "i", "bags": "b", "reward": {"scorer": "s"}, "data": {"images": "d"},
    }  # fmt: skip
    return config_from_dict(ReinforceConfig, merged(read_preset("paper"), paths))


def test_the_preset_has_the_schedule_of_method_5_2() -> None:
    config = _paper()
    count = 4000
    bags = {
        ("hard", row.size): [tuple(range(n, n + row.size)) for n in range(count)] for row in config.curriculum
    }
    order = BagOrder(table=config.curriculum, bags=bags, seed=0, batch_size=config.optimizer.batch_size)
    for first, last, size, each, images in TABLE:
        for epoch in range(first - 1, last):
            assert level_of(config.curriculum, epoch)[1:] == (size, "hard")
            assert order.bags_per_share(epoch) == each
            assert len(order.rows(epoch, 0, 0, Share())) == images
            assert order.steps(epoch) == count // each
    with pytest.raises(ConfigError, match="covers 20 epochs, not epoch 21"):
        level_of(config.curriculum, 20)


def _order(**other: int) -> BagOrder:
    table = (CurriculumRow(epochs=2, size=3), CurriculumRow(epochs=1, size=2, band="easy"))
    bags = {
        ("hard", 3): [(3 * n, 3 * n + 1, 3 * n + 2) for n in range(8)],
        ("easy", 2): [(n, 23 - n) for n in range(12)],
    }
    return BagOrder(table=table, bags=bags, seed=1, **{"batch_size": 7, **other})


def test_an_epoch_is_one_shuffled_pass_over_whole_bags() -> None:
    order = _order()
    assert [order.steps(epoch) for epoch in range(3)] == [4, 4, 4]
    epochs = [[row for step in range(4) for row in order.rows(epoch, step, 0, Share())] for epoch in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2]) == list(range(24))
    assert epochs[0] != epochs[1]
    assert all(epochs[0][n] % 3 == n % 3 for n in range(24))  # bags stay whole and in order
    assert order.rows(0, 1, 0, Share()) == epochs[0][6:12]  # a function of epoch and step
    assert [order.level(epoch) for epoch in range(3)] == [0, 0, 1]


def test_the_last_partial_batch_is_dropped_and_epochs_can_be_cut() -> None:
    assert _order(batch_size=9).steps(0) == 2  # three bags a batch, two left over
    assert _order(max_steps=2).steps(0) == 2


def test_processes_and_parts_share_a_batch_without_tearing_bags() -> None:
    order = _order(batch_size=14, accumulate=2, processes=2)
    assert order.steps(0) == 2
    shares = [order.rows(0, 1, part, Share(rank, 2)) for part in range(2) for rank in range(2)]
    assert [len(rows) for rows in shares] == [3, 3, 3, 3]
    rest = [order.rows(0, 0, part, Share(rank, 2)) for part in range(2) for rank in range(2)]
    assert sorted(row for rows in [*shares, *rest] for row in rows) == list(range(24))
    with pytest.raises(ConfigError, match="a share of 2 images holds no bag of 3"):
        _order(batch_size=5, accumulate=2).steps(0)
    with pytest.raises(ConfigError, match="8 hard bags of 3 fill no batch of 9 bags"):
        _order(batch_size=27).steps(0)


class _File:
    def of(self, band: str, size: int) -> Sequence[Sequence[str]]:
        return {"hard": [["a", "b"], ["c", "held"], ["d", "e"]], "easy": [["held", "a"]]}[band]


def test_bags_with_an_image_that_is_not_trained_on_are_left_out_and_counted() -> None:
    rows = {name: row for row, name in enumerate("abcde")}
    table = (CurriculumRow(epochs=1, size=2), CurriculumRow(epochs=3, size=2))
    assert known_bags(table, _File(), rows) == ({("hard", 2): [(0, 1), (3, 4)]}, 1)
    with pytest.raises(ConfigError, match="of 1 easy bags of 2 none holds training images alone"):
        known_bags((CurriculumRow(band="easy"),), _File(), rows)
