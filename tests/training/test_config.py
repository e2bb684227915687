from __future__ import annotations

from pathlib import Path

import pytest

from tellapart.errors import ConfigError
from tellapart_training.config import STAGES, MleConfig, ReinforceConfig
from tellapart_training.config_file import (
    changed_keys,
    config_from_dict,
    config_to_dict,
    config_to_toml,
    load_config,
)

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
MINIMAL = {"run": "r", "init": "i", "data": {"captions": "c", "images": "d"}}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_read_and_written_back_equal(path: Path, tmp_path: Path) -> None:
    words = path.stem.split("_")
    rewarded = "samples_per_image" in path.read_text(encoding="utf-8")
    stage = next((name for name in STAGES if name in words), "reinforce" if rewarded else "mle")
    config = load_config(path, stage=stage)
    again = tmp_path / "again.toml"
    again.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(again, stage=stage) == config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sed": 1}, ["'sed'", "'seed'"]),
        ({"optimizer": {"batchsize": 4}}, ["'optimizer.batchsize'", "'batch_size'"]),
        ({"optimizer": {"lr_multipliers": {"trunc": 0.1}}}, ["'optimizer.lr_multipliers.trunc'", "'trunk'"]),
        ({"zzzz": 1}, ["'zzzz'", "known keys are"]),
        ({"seed": "one"}, ["seed must be int", "'one'"]),
        ({"optimizer": {"epochs": True}}, ["optimizer.epochs must be int", "bool"]),
        ({"optimizer": 3}, ["optimizer must be a table"]),
        ({"data": {"captions": "c", "images": "d", "text": "t"}}, ["data.text must be a list"]),
        ({"optimizer": {"lr": -1}}, ["optimizer.lr must be above 0"]),
        ({"optimizer": {"batch_size": 10, "accumulate": 3}}, ["optimizer.accumulate", "divisor"]),
        ({"precision": "fp16"}, ["precision must be 'fp32', 'bf16' or 'auto'"]),
        ({"captions_per_image": 6}, ["captions_per_image must be 1 to 5"]),
        ({"features_from": "x.onnx"}, ["features_from", "frozen"]),
        (
            {"trunk": "frozen", "optimizer": {"lr_multipliers": {"trunk": 0.1}}},
            ["lr_multipliers.trunk must be 0"],
        ),
    ],
)
def test_a_wrong_config_says_which_key_and_what_to_write(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(MleConfig, {**MINIMAL, **values})
    for word in words:
        assert word in str(caught.value)


def test_whole_numbers_are_taken_for_floats_but_not_the_reverse() -> None:
    config = config_from_dict(MleConfig, {**MINIMAL, "contrastive_weight": 1})
    assert config.contrastive_weight == 1.0
    with pytest.raises(ConfigError, match="seed must be int, got float"):
        config_from_dict(MleConfig, {**MINIMAL, "seed": 1.0})


def test_overrides_win_over_the_file_and_reach_nested_tables(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        'run = "r"\ninit = "i"\n[data]\ncaptions = "c"\nimages = "d"\n[optimizer]\nlr = 1e-3\n',
        encoding="utf-8",
    )
    overrides = [
        "optimizer.lr=0.5",
        "optimizer.lr_multipliers.trunk=0.1",
        "run=runs/x",
        'data.text=["a", "b"]',
    ]
    config = load_config(path, stage="mle", overrides=overrides)
    assert isinstance(config, MleConfig)
    assert config.optimizer.lr == 0.5
    assert config.optimizer.lr_multipliers.trunk == 0.1
    assert (config.run, config.data.text) == ("runs/x", ("a", "b"))
    with pytest.raises(ConfigError, match=r"did you mean 'lr'"):
        load_config(path, stage="mle", overrides=["optimizer.lrr=0.5"])
    with pytest.raises(ConfigError, match="must look like"):
        load_config(path, stage="mle", overrides=["optimizer.lr"])


def test_a_file_that_is_absent_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*nothing\.toml"):
        load_config(tmp_path / "nothing.toml", stage="mle")
    broken = tmp_path / "broken.toml"
    broken.write_text("run = [", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        load_config(broken, stage="mle")


def test_changed_keys_are_dotted() -> None:
    one = config_to_dict(config_from_dict(MleConfig, MINIMAL))
    two = config_to_dict(config_from_dict(MleConfig, {**MINIMAL, "seed": 3, "optimizer": {"lr": 1.0}}))
    assert changed_keys(one, two) == ["optimizer.lr", "seed"]
    assert changed_keys(one, one) == []


REWARDED = {**MINIMAL, "optimizer": {"epochs": 3}}
ROW = {"epochs": 2, "size": 3, "band": "hard"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"reward": {"self_retrieval": 1.0}}, ["reward.scorer must be a checkpoint folder"]),
        ({"reward": {"grammar": 1.0}}, ["reward.grammar_checkpoint"]),
        ({"reward": {"fluency": 1.0}}, ["reward.language_model"]),
        ({"reward": {"cider_d": 0.0}}, ["reward must be at least one weight above 0"]),
        ({"reward": {"cider": 1.0}}, ["'reward.cider'", "'cider_d'"]),
        ({"reward": {"denominator": "bag"}}, ["reward.denominator", "without a curriculum"]),
        ({"samples_per_image": 1}, ["samples_per_image must be at least 2 with this baseline"]),
        ({"decode": "greedy"}, ["samples_per_image must be 1 with decode = 'greedy'"]),
        (
            {"decode": "greedy", "samples_per_image": 1, "baseline": "greedy"},
            ["baseline must be 'running_mean' or 'none'"],
        ),
        ({"temperature": 0.0}, ["temperature must be above 0"]),
        ({"baseline": "mean"}, ["baseline must be one of leave_one_out, greedy, running_mean, none"]),
        ({"curriculum": [ROW]}, ["bags must be a file of `tellapart mine-bags`"]),
        ({"curriculum": [ROW], "bags": "b"}, ["optimizer.epochs must be at most the curriculum's 2"]),
        ({"curriculum": [{**ROW, "band": "harder"}]}, ["curriculum band", "hard, medium, easy"]),
        ({"curriculum": [{**ROW, "sise": 1}]}, ["'curriculum[0].sise'", "'size'"]),
        ({"data": {"images": "d"}}, ["data.captions must be a captions file"]),
        ({"data": {"images": "d"}, "mle_weight": 0.0}, ["data.captions must be a captions file"]),
        (
            {"data": {"images": "d"}, "mle_weight": 0.0,
             "reward": {"cider_d": 0.0, "self_retrieval": 1.0, "scorer": "s"}},
            ["selection must be 'self_retrieval_r1' where data.captions is empty"],
        ),
        ({"trunk": "frozen", "lora": {"rank": 4, "trunk": True}}, ["lora.trunk"]),
    ],
)  # fmt: skip
def test_a_wrong_reward_run_says_which_key_and_what_to_write(
    values: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(ReinforceConfig, {**REWARDED, **values})
    for word in words:
        assert word in str(caught.value)


def test_images_without_captions_will_do_for_self_retrieval_alone() -> None:
    values = {
        **REWARDED, "data": {"images": "d"}, "mle_weight": 0.0, "selection": "self_retrieval_r1",
        "reward": {"cider_d": 0.0, "self_retrieval": 1.0, "scorer": "s"},
    }  # fmt: skip
    assert not config_from_dict(ReinforceConfig, values).needs_captions
