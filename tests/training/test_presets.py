"""Presets: the paper's values, and that a file and --set win over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellapart.errors import ConfigError
from tellapart_training.config import ReinforceConfig
from tellapart_training.config_file import config_from_dict, config_to_dict, config_to_toml, load_config
from tellapart_training.presets import PRESETS, merged

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
FILE = """
preset = "{preset}"
run = "r"
init = "i"
bags = "b"
[reward]
scorer = "s"
language_model = "l"
[data]
captions = "c"
images = "d"
"""


def _load(tmp_path: Path, preset: str, *overrides: str) -> ReinforceConfig:
    path = tmp_path / "run.toml"
    path.write_text(FILE.format(preset=preset), encoding="utf-8")
    config = load_config(path, stage="reinforce", overrides=overrides)
    assert isinstance(config, ReinforceConfig)
    return config


def test_paper_has_the_values_of_method_4_and_5(tmp_path: Path) -> None:
    config = _load(tmp_path, "paper")
    optimizer, reward = config.optimizer, config.reward
    assert (optimizer.lr, optimizer.batch_size, optimizer.epochs) == (9e-8, 100, 20)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.final_lr_share) == (0.01, 0.0, 1.0)
    assert (config.temperature, config.samples_per_image, config.normalise) == (0.3, 1, "length")
    assert (config.baseline, config.baseline_reset, config.kl_weight) == ("running_mean", False, 0.0)
    assert (reward.self_retrieval, reward.cider_d, reward.scale, reward.denominator) == (1, 0, 100, "batch")
    assert (config.lora.rank, config.lora.alpha, config.lora.init, config.lora.trunk) == (
        32, 16, "normal", True,
    )  # fmt: skip
    assert (config.seed, config.mle_weight, config.selection) == (42, 0.0, "self_retrieval_r1")


def test_cider_sr_differs_from_paper_as_method_4_4_says(tmp_path: Path) -> None:
    config, paper = _load(tmp_path, "cider-sr"), _load(tmp_path, "paper")
    assert (config.baseline, config.optimizer.lr, config.reward.cider_d) == ("greedy", 1e-7, 1.0)
    assert config.curriculum == paper.curriculum


def test_sr_dessi_has_the_values_of_method_9_1(tmp_path: Path) -> None:
    config = _load(tmp_path, "sr-dessi")
    assert (config.decode, config.baseline, config.temperature) == ("greedy", "running_mean", 1.0)
    assert (config.optimizer.lr, config.optimizer.batch_size, config.optimizer.epochs) == (1e-7, 100, 20)
    assert config.optimizer.weight_decay == 0.0
    assert config.optimizer.lr_multipliers.trunk == 0.0
    assert config.curriculum == ()
    assert config.lora.rank == 0


def test_cider_is_what_the_stage_does_without_a_preset(tmp_path: Path) -> None:
    values = {
        "run": "r", "init": "i", "bags": "b", "captions_per_image": 1,
        "reward": {"scorer": "s", "language_model": "l"},
        "data": {"captions": "c", "images": "d"},
        "optimizer": {"label_smoothing": 0.0, "lr_multipliers": {"text": 0.0}},
    }  # fmt: skip
    plain = config_from_dict(ReinforceConfig, values)
    assert config_to_toml(_load(tmp_path, "cider")) == config_to_toml(plain).replace(
        'preset = ""', 'preset = "cider"'
    )


def test_default_is_what_the_embedded_model_was_polished_with(tmp_path: Path) -> None:
    def settled(config: object) -> dict[str, object]:
        assert isinstance(config, ReinforceConfig)
        page = config_to_dict(config)
        for name in ("preset", "run", "init", "bags", "features_from", "data", "loop"):
            del page[name]  # whose folders, and how often something is written
        for name in ("scorer", "language_model"):
            del page["reward"][name]
        return page

    polish = load_config(CONFIGS / "embedded_polish.toml", stage="reinforce")
    assert settled(_load(tmp_path, "default")) == settled(polish)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_below_the_file_and_the_file_below_set(preset: str, tmp_path: Path) -> None:
    config = _load(tmp_path, preset, "reward.scale=7.0", "optimizer.lr=0.5", "curriculum=[]")
    assert (config.reward.scale, config.optimizer.lr, config.curriculum) == (7.0, 0.5, ())
    assert (config.preset, config.reward.scorer) == (preset, "s")
    again = tmp_path / "again.toml"
    again.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(again, stage="reinforce") == config


def test_an_unknown_preset_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no preset 'papers': did you mean 'paper'"):
        _load(tmp_path, "papers")


def test_lists_are_replaced_and_tables_joined() -> None:
    below = {"a": [1, 2], "t": {"x": 1, "y": 2}}
    assert merged(below, {"a": [3], "t": {"y": 5}}) == {"a": [3], "t": {"x": 1, "y": 5}}
    assert below == {"a": [1, 2], "t": {"x": 1, "y": 2}}
