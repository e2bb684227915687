"""The study's rows: every command has a config that parses, and rows differ in what their titles say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tellapart.errors import UsageError
from tellapart_training.config_file import load_config
from tellapart_training.steps import Step
from tellapart_training.study.rows import (
    BAG_SIZES,
    ROWS,
    SEEDS,
    Places,
    bag_steps,
    blend_steps,
    judge_steps,
    mle_steps,
    reward_steps,
)

pytestmark = pytest.mark.train

PLACES = Places(Path("data"), Path("runs/study"), Path("runs/embedded"))


def _config(step: Step) -> object:
    overrides = [flag.removeprefix("--set=") for flag in step.argv if flag.startswith("--set=")]
    return load_config(Path(step.argv[3]), stage=step.argv[1], overrides=overrides)


def _steps() -> list[Step]:
    return [*judge_steps(PLACES), *mle_steps(PLACES), *reward_steps(PLACES)]


def test_every_command_has_a_config_that_parses_and_makes_what_it_says() -> None:
    for step in _steps():
        assert step.argv[0] == "train"
        assert Path(_config(step).run) == step.makes  # type: ignore[attr-defined]
        assert step.trains == (step.argv[1] != "init")


def test_every_row_is_there_for_every_seed_and_starts_from_its_own() -> None:
    configs = {step.makes.name: _config(step) for step in [*mle_steps(PLACES), *reward_steps(PLACES)]}
    assert set(configs) == {f"{row.name}-{seed}" for row in ROWS for seed in SEEDS}
    for row in ROWS:
        for seed in SEEDS:
            config = configs[f"{row.name}-{seed}"]
            assert config.seed == seed  # type: ignore[attr-defined]
            start = f"runs/study/{row.start}-{seed}/last" if row.settings else "runs/embedded/joint/last"
            assert config.init == start  # type: ignore[attr-defined]


def test_rewards_and_curricula_are_those_of_the_titles() -> None:
    configs = {step.makes.name: _config(step) for step in reward_steps(PLACES)}
    for name, config in configs.items():
        reward, rows = config.reward, config.curriculum  # type: ignore[attr-defined]
        assert (reward.cider_d > 0) == name.startswith("cider")
        assert (reward.self_retrieval > 0) == ("sr" in name.split("-"))
        assert reward.scorer == "runs/embedded/heads/last"
        assert config.max_steps_per_epoch == 14  # type: ignore[attr-defined]
        # Equal steps for all: the curriculum ends with the run.
        epochs = config.optimizer.epochs  # type: ignore[attr-defined]
        assert not rows or sum(row.epochs for row in rows) == epochs
        if name.startswith("sr-hard"):
            assert [row.size for row in rows] == [5]
        elif "bagcurri" in name:
            assert [row.size for row in rows] == list(BAG_SIZES)
        else:
            assert not rows
        assert bool(config.bags) == bool(rows)  # type: ignore[attr-defined]


def test_blended_captions_are_read_before_rewards_alone() -> None:
    """The rows from blended captions differ from the others in their start: rewards see what people wrote."""
    [blend] = blend_steps(PLACES)
    readers = [step.makes.name for step in _steps() if _config(step).data.captions == str(blend.makes)]  # type: ignore[attr-defined]
    assert readers == [f"mle-blended-{seed}" for seed in SEEDS]
    starts = {row.name: row.start for row in ROWS if row.settings}
    assert starts["sr-blended"] == starts["cider-sr-blended"] == "mle-blended"
    assert {start for name, start in starts.items() if not name.endswith("blended")} == {"mle"}


def test_the_unlabelled_row_names_no_captions() -> None:
    [config] = [_config(step) for step in reward_steps(PLACES) if step.makes.name == "sr-coco-1"]
    data = config.data  # type: ignore[attr-defined]
    assert (data.captions, data.images) == ("", "data/coco_unlabelled/images.tar")
    assert config.selection == "self_retrieval_r1"  # type: ignore[attr-defined]


def test_neither_judge_nor_language_model_comes_near_a_reward() -> None:
    judged = {str(step.makes) for step in judge_steps(PLACES)}
    assert judged == {f"runs/study/{name}" for name in ("judge_init", "judge", "language_init", "language")}
    for step in [*mle_steps(PLACES), *reward_steps(PLACES)]:
        assert not any(place in " ".join(step.argv) for place in judged)


def test_bags_are_mined_once_in_every_size_of_the_curriculum() -> None:
    [step] = bag_steps(PLACES)
    assert step.makes == PLACES.bags
    sizes = step.argv[step.argv.index("--sizes") + 1 : step.argv.index("--bands")]
    assert sizes == [str(size) for size in BAG_SIZES]
    assert "val" not in step.argv  # of the splits


def test_a_few_rows_with_a_budget_of_their_own() -> None:
    rows = [row for row in ROWS if row.name in ("mle", "mle-blended", "sr-blended")]
    changes = ["mle.views=1", "reinforce.optimizer.batch_size=30", "reinforce.views=2"]
    places = replace(PLACES, rows=rows, changes=changes)
    assert bag_steps(places) == []
    assert blend_steps(replace(places, rows=rows[:1])) == []
    configs = {step.makes.name: _config(step) for step in [*mle_steps(places), *reward_steps(places)]}
    assert set(configs) == {f"{row.name}-{seed}" for row in rows for seed in SEEDS}
    for name, config in configs.items():
        assert config.views == (1 if name.startswith("mle") else 2)  # type: ignore[attr-defined]
        assert config.optimizer.batch_size == (128 if name.startswith("mle") else 30)  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", ["views=1", "warmup.views=1", "mle.views"])
def test_a_change_that_names_no_stage_or_value_is_refused(change: str) -> None:
    with pytest.raises(UsageError, match=r"STAGE\.KEY=VALUE"):
        replace(PLACES, changes=[change])
