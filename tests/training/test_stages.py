"""Each stage at toy size: it learns, and it touches only what it should."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from tellapart.errors import ConfigError, DataError  # noqa: E402
from tellapart_model.checkpoint import load_checkpoint  # noqa: E402
from tellapart_training import loop  # noqa: E402
from tellapart_training.config import MleConfig, RetrieverConfig, TrainConfig, WarmupConfig  # noqa: E402
from tellapart_training.config_file import load_config  # noqa: E402
from tellapart_training.features import Trunk  # noqa: E402
from tellapart_training.mle import MleObjective, train_mle  # noqa: E402
from tellapart_training.optimisation import lr_share, part_of  # noqa: E402
from tellapart_training.pair import open_pair  # noqa: E402
from tellapart_training.retriever import train_retriever  # noqa: E402
from tellapart_training.warmup import train_warmup  # noqa: E402

pytestmark = pytest.mark.train

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
TINY = ["data.limit_images=4", "optimizer.batch_size=4", "augment.enabled=false", "optimizer.ema_decay=0.0"]
TINY += [
    "optimizer.label_smoothing=0.0",
    "loop.log_every=5",
    "loop.evaluate_every=1000",
    "loop.save_every=1000",
]


def _load(stage: str, settings: list[str]) -> TrainConfig:
    config = load_config(CONFIGS / f"toy_{stage}.toml", stage=stage, overrides=settings)
    assert isinstance(config, TrainConfig)
    return config


def _entries(run: str, kind: str) -> list[dict[str, Any]]:
    lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def _changed_parts(run: str, init: Path) -> set[str]:
    before, after = load_file(init / "model.safetensors"), load_file(Path(run) / "last" / "model.safetensors")
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


def test_the_captioner_learns_four_images_by_heart(toy_settings: list[str], toy_world: Path) -> None:
    extra = ["optimizer.epochs=60", "captions_per_image=1", "optimizer.lr=0.01", "optimizer.weight_decay=0.0"]
    config = _load("mle", [*toy_settings, *TINY, *extra])
    assert isinstance(config, MleConfig)
    train_mle(config)
    losses = [entry["loss"] for entry in _entries(config.run, "train")]
    assert losses[-1] < 0.6 * losses[0]
    assert _changed_parts(config.run, toy_world / "init") == {"decoder", "heads"}
    assert not load_checkpoint(Path(config.run) / "last").model.training


def test_the_retriever_learns_and_leaves_the_rest_alone(toy_settings: list[str], toy_world: Path) -> None:
    # The toy pair's untrained trunk gives every image the same features; this one tells them apart.
    mixing = np.random.default_rng(0).normal(size=(48, 1280)).astype(np.float32)

    def encode(pixels: Any) -> Any:
        small = pixels.reshape(len(pixels), 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(len(pixels), 1, 48)
        return ((small - 127) / 10) @ mixing

    extra = ["optimizer.epochs=40", "optimizer.lr=0.003", "optimizer.lr_multipliers.decoder=0.0"]
    config = _load("retriever", [*toy_settings, *TINY, *extra])
    assert isinstance(config, RetrieverConfig)
    train_retriever(config, trunk=Trunk(encode, "mixed"))
    entries = _entries(config.run, "train")
    assert entries[-1]["loss"] < 0.6 * entries[0]["loss"]
    assert _changed_parts(config.run, toy_world / "init") == {"text", "heads"}


def test_warm_up_learns_and_changes_the_decoder_alone(toy_settings: list[str], toy_world: Path) -> None:
    config = _load("warmup", [*toy_settings, "optimizer.epochs=8"])
    assert isinstance(config, WarmupConfig)
    train_warmup(config)
    losses = [entry["tuning_loss"] for entry in _entries(config.run, "evaluation")]
    assert losses[-1] < losses[0]
    assert _changed_parts(config.run, toy_world / "init") == {"decoder"}


def test_a_tuned_trunk_learns_but_its_statistics_stay(toy_settings: list[str], toy_world: Path) -> None:
    settings = [*toy_settings, "optimizer.epochs=1", "optimizer.lr_multipliers.trunk=1.0", "precision=bf16"]
    config = _load("mle", settings)
    assert isinstance(config, MleConfig)
    train_mle(config)
    before = load_file(toy_world / "init" / "model.safetensors")
    after = load_file(Path(config.run) / "last" / "model.safetensors")
    trunk = [name for name in before if name.startswith("trunk.")]
    assert any(not torch.equal(before[name], after[name]) for name in trunk)
    statistics = [name for name in trunk if "running_" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)


def test_features_of_a_given_trunk_are_computed_once_and_used(toy_settings: list[str]) -> None:
    calls: list[int] = []

    def encode(pixels: Any) -> Any:
        calls.append(len(pixels))
        means = pixels.reshape(len(pixels), 1, -1).mean(axis=2, keepdims=True) / 255
        return np.repeat(means, 1280, axis=2).astype(np.float32)

    config = _load("mle", [*toy_settings, "trunk=frozen", "views=3", "optimizer.epochs=1"])
    assert isinstance(config, MleConfig)
    train_mle(config, trunk=Trunk(encode, "means"))
    assert sum(calls) == 20 * 3 + 4  # 3 views of 20 training images, 1 of 4 tuning images
    again = dataclasses.replace(config, run=config.run + "2", seed=config.seed)
    train_mle(again, trunk=Trunk(encode, "means"))
    assert sum(calls) == 64


def test_a_null_picture_tells_the_decoder_nothing_and_the_retriever_all(toy_world: Path) -> None:
    pair = open_pair(toy_world / "init")
    pair.network.eval()
    ids = torch.tensor([pair.encode("a red ball"), pair.encode("a red ball")])
    features = torch.randn(2, 2, 4, 1280, generator=torch.Generator().manual_seed(3))
    batch = {"pixels": None, "ids": ids, "owners": torch.tensor([0, 1]), "text_keys": torch.tensor([1, 2])}

    def losses(probability: float, seen: torch.Tensor) -> dict[str, float]:
        objective = MleObjective(
            pair, label_smoothing=0.0, contrastive_weight=1.0, null_probability=probability,
            null_features=torch.zeros(1, 4, 1280),
        )  # fmt: skip
        with torch.no_grad():
            return {name: float(value) for name, value in objective(features=seen, **batch).items()}

    shown, other = losses(0.0, features[0]), losses(0.0, features[1])
    assert shown["caption_loss"] != other["caption_loss"]
    # torch.rand is below 1, so every image is replaced; the config refuses 1 itself.
    null, same = losses(1.0, features[0]), losses(1.0, features[1])
    assert null["caption_loss"] == same["caption_loss"] != shown["caption_loss"]
    assert null["contrastive_loss"] == shown["contrastive_loss"] != same["contrastive_loss"]


def test_null_features_come_from_the_trunk_that_stands_for_ours(toy_settings: list[str]) -> None:
    greys: list[int] = []

    def encode(pixels: Any) -> Any:
        if len(pixels) == 1:
            greys.extend(np.unique(pixels).tolist())
        return np.zeros((len(pixels), 1, 1280), np.float32)

    settings = [*toy_settings, *TINY, "trunk=frozen", "optimizer.epochs=1", "null_probability=0.5"]
    config = _load("mle", settings)
    assert isinstance(config, MleConfig)
    train_mle(config, trunk=Trunk(encode, "nothing"))
    assert greys == [127]
    with pytest.raises(ConfigError, match="null_probability"):
        _load("mle", [*toy_settings, "null_probability=1.0"])


def test_the_run_folder_tells_what_was_done(toy_settings: list[str]) -> None:
    config = _load("mle", [*toy_settings, "optimizer.epochs=2"])
    assert isinstance(config, MleConfig)
    train_mle(config)
    run = Path(config.run)
    assert load_config(run / "config.toml", stage="mle") == config
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(samples) == 2 * 4
    assert set(samples[0]) == {"step", "epoch", "image", "caption", "references"}
    assert {"tuning_loss", "text_to_image_r1", "image_to_text_r10", "cider_d"} <= set(
        _entries(config.run, "evaluation")[0]
    )
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert facts["steps"] == 4
    assert facts["starts"][0]["versions"]["torch"]
    assert facts["precision"] == "fp32"


@pytest.mark.parametrize(
    ("precision", "flags", "expected"),
    [
        ("auto", ("avx2", "amx_bf16"), "bf16"),
        ("auto", ("avx512f", "avx512_bf16"), "bf16"),
        ("auto", ("avx2", "avx512_vnni"), "no"),
        ("bf16", ("avx2",), "bf16"),
        ("fp32", ("amx_bf16",), "no"),
    ],
)
def test_precision_is_chosen_by_what_the_processor_multiplies(
    monkeypatch: pytest.MonkeyPatch, precision: str, flags: tuple[str, ...], expected: str
) -> None:
    machine = dataclasses.replace(loop.examine_machine(), cpu_flags=flags)
    monkeypatch.setattr(loop, "examine_machine", lambda: machine)
    config = TrainConfig(run="run", init="init", precision=precision, device="cpu")
    assert loop.make_accelerator(config).mixed_precision == expected


def test_missing_images_and_wrong_data_leave_no_cache_behind(toy_settings: list[str], tmp_path: Path) -> None:
    captions = tmp_path / "more.jsonl"
    lines = [
        json.dumps({"image": f"{i}.png", "split": "train", "captions": ["a dog"] * 5}) for i in range(20, 30)
    ]
    captions.write_text("\n".join(lines), encoding="utf-8")
    config = _load("mle", [*toy_settings, f"data.captions={captions}"])
    assert isinstance(config, MleConfig)
    with pytest.raises(DataError, match=r"cannot read image .*\d+\.png"):
        train_mle(config)
    assert not list(Path(config.data.cache).glob("*"))
    assert not Path(config.run).exists()


def test_nothing_to_train_is_an_error(toy_settings: list[str]) -> None:
    frozen = [f"optimizer.lr_multipliers.{part}=0.0" for part in ("decoder", "text", "heads")]
    config = _load("mle", [*toy_settings, *frozen])
    assert isinstance(config, MleConfig)
    with pytest.raises(ConfigError, match="nothing is trained"):
        train_mle(config)


def test_the_learning_rate_rises_then_falls_to_its_share() -> None:
    config = _load("mle", ["optimizer.warmup_share=0.1", "optimizer.final_lr_share=0.01"]).optimizer
    shares = [lr_share(step, 100, config) for step in range(100)]
    assert shares[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert shares[10] == pytest.approx(1.0)
    assert shares[55] == pytest.approx(0.505)  # half way down the cosine
    assert shares[99] == pytest.approx(0.01, abs=1e-3)
