"""Self-critical training: the reward, the estimator, and a toy run in which the reward rises."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from tellapart_model.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from tellapart_model.compact import CompactPair  # noqa: E402
from tellapart_model.generate import sample  # noqa: E402
from tellapart_training.config import ReinforceConfig  # noqa: E402
from tellapart_training.config_file import load_config  # noqa: E402
from tellapart_training.reinforce import train_reinforce  # noqa: E402
from tellapart_training.state import saved_states  # noqa: E402

pytestmark = pytest.mark.train
CONFIG = Path(__file__).parents[2] / "training" / "configs" / "toy_reinforce.toml"
RETRIEVAL = CONFIG.with_name("toy_reinforce_sr.toml")


def test_samples_follow_the_distribution_of_the_model(toy_world: Path) -> None:
    model = load_checkpoint(toy_world / "init").model
    config = model.config
    cross_kv = torch.zeros(2 * config.layers, 4000, config.heads, 1, config.head_width)
    torch.manual_seed(0)
    first = sample(model, cross_kv, max_new_tokens=1)[:, 0]
    logits = model.decoder(torch.tensor([[2]]), cross_kv[:, :1])[0, 0].detach()
    logits[:3] = float("-inf")
    share = torch.bincount(first, minlength=config.vocabulary_size) / 4000
    assert float(share[:3].sum()) == 0.0
    assert float((share - logits.softmax(0)).abs().max()) < 0.02  # four standard errors of a share of 0.1


def test_the_reward_rises_and_only_bridge_and_decoder_learn(toy_settings: list[str], toy_world: Path) -> None:
    config = load_config(CONFIG, stage="reinforce", overrides=toy_settings)
    assert isinstance(config, ReinforceConfig)
    train_reinforce(config)
    lines = (Path(config.run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rewards = [entry["reward"] for entry in map(json.loads, lines) if entry["kind"] == "train"]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])
    before = load_checkpoint(toy_world / "init").model.state_dict()
    after = load_checkpoint(Path(config.run) / "last").model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"bridge", "decoder"}


def _bags(path: Path) -> Path:
    """Bags of two and three over the toy images, as `tellapart mine-bags` writes them."""
    names = [f"{index}.png" for index in range(24)]
    sizes = {str(size): [names[at : at + size] for at in range(0, 24, size)] for size in (2, 3)}
    whole = {
        "format": 1, "source": "toy", "embedding": {"name": "none", "sha256": ""}, "seed": 0,
        "near_duplicate": 0.97, "counts": {}, "bags": {"hard": sizes},
    }  # fmt: skip
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def told_apart(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 smooth pictures, and a captioner and a scorer to whom they look different, as noise would not."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("told-apart")
    (root / "images").mkdir()
    draw, pictures = np.random.default_rng(0), []
    for index in range(24):
        corners = Image.fromarray(draw.integers(0, 255, (2, 2, 3), dtype=np.uint8))
        corners.resize((32, 32)).save(root / "images" / f"{index}.png")
        pictures.append(np.asarray(corners.resize((32, 32))))
    for seed, name in enumerate(("captioner", "scorer")):
        torch.manual_seed(seed)
        stored = load_checkpoint(toy_world / "init")
        pair = CompactPair(stored.config).eval()
        # Statistics of the pictures: an untrained trunk gives the same features for all without them.
        for module in pair.trunk.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.training, module.momentum = True, None
        with torch.no_grad():
            pair.features(torch.from_numpy(np.stack(pictures)))
            for parameter, values in pair.decoder.named_parameters():
                if parameter.endswith(("_out.weight", "cross_query.weight")):
                    values.mul_(12)
        save_checkpoint(root / name, pair, vocabulary=stored.vocabulary)
    return root


@pytest.fixture
def retrieval_settings(toy_settings: list[str], told_apart: Path, tmp_path: Path) -> list[str]:
    """`--set` arguments of a self-retrieval run on mined bags."""
    settings = {
        "init": told_apart / "captioner", "reward.scorer": told_apart / "scorer", "reward.scale": 10.0,
        "data.images": told_apart / "images", "bags": _bags(tmp_path / "bags.json"),
    }  # fmt: skip
    return [*toy_settings, *(f"{name}={value}" for name, value in settings.items())]


def _config(settings: list[str], path: Path = RETRIEVAL) -> ReinforceConfig:
    config = load_config(path, stage="reinforce", overrides=settings)
    assert isinstance(config, ReinforceConfig)
    return config


def _lines(run: Path) -> list[dict[str, Any]]:
    """Metrics without what a clock gave."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clocks = ("elapsed_s", "seconds", "steps_per_s")
    return [
        {name: value for name, value in entry.items() if name not in clocks and not name.startswith("time_")}
        for entry in entries
    ]


def _train_lines(run: Path) -> list[dict[str, Any]]:
    return [entry for entry in _lines(run) if entry["kind"] == "train"]


def test_self_retrieval_rises_on_images_without_captions(
    retrieval_settings: list[str],
) -> None:
    """Smoke test (v) of method 10, smaller: SR raises the mean log p of the own image."""
    settings = [*retrieval_settings, "data.captions=", "curriculum=[]", "bags=", "optimizer.batch_size=20"]
    settings += ["optimizer.epochs=40", 'trunk="frozen"', "views=1", "loop.evaluate_every=100"]
    config = _config(settings)
    train_reinforce(config)
    found = [entry["reward_self_retrieval"] for entry in _train_lines(Path(config.run))]
    assert sum(found[-5:]) / 5 > sum(found[:5]) / 5 + 1.0


def test_every_term_is_logged_apart_and_shares_of_time_sum_to_one(
    retrieval_settings: list[str], told_apart: Path, tmp_path: Path
) -> None:
    settings = [
        *retrieval_settings,
        "reward.cider_d=2.0",
        "reward.faithfulness=0.5",
        "kl_weight=0.1",
        "mle_weight=0.1",
    ]
    config = _config([*settings, "optimizer.epochs=1"])
    train_reinforce(config)
    entries = [json.loads(line) for line in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]
    assert [entry["kind"] for entry in entries] == ["train", "train", "evaluation"]
    for entry in entries[:2]:
        total = (
            entry["reward_self_retrieval"] + 2 * entry["reward_cider_d"] + 0.5 * entry["reward_faithfulness"]
        )
        assert entry["reward"] == pytest.approx(total, abs=1e-4)
        assert entry["reward_self_retrieval"] < 0 < entry["reward_std"]
        parts = entry["reinforce_loss"] + 0.1 * entry["kl"] + 0.1 * entry["caption_loss"]
        assert entry["loss"] == pytest.approx(parts, abs=1e-4)
        times = {name: value for name, value in entry.items() if name.startswith("time_")}
        assert set(times) == {"time_sampling", "time_scoring", "time_backward", "time_other"}
        assert sum(times.values()) == pytest.approx(1.0, abs=1e-3)
        assert min(times["time_sampling"], times["time_scoring"], times["time_backward"]) > 0
        assert entry["steps_per_s"] > 0
        assert 0 <= entry["cut_captions"] <= 1 <= entry["caption_words"]
    assert entries[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # the start is the reference
    assert entries[1]["kl"] > 0
    assert 0 <= entries[2]["self_retrieval_r1"] <= 1
    assert entries[2]["self_retrieval"] < 0


def test_divergence_holds_the_network_near_its_start(
    retrieval_settings: list[str], told_apart: Path, tmp_path: Path
) -> None:
    settings = [
        *retrieval_settings,
        "curriculum=[]",
        "bags=",
        "optimizer.epochs=8",
        "loop.evaluate_every=100",
        'trunk="frozen"',
        "views=1",
    ]
    last = []
    for weight in (0.001, 5.0):
        config = _config([*settings, f"kl_weight={weight}", f"run={tmp_path / str(weight)}"])
        train_reinforce(config)
        last.append(_train_lines(Path(config.run))[-1]["kl"])
    assert 0 < last[1] < 0.4 * last[0]


@pytest.mark.parametrize(
    "other",
    [
        [],
        ['baseline="running_mean"', "samples_per_image=1", 'normalise="length"', "temperature=0.3"],
        ["lora.rank=2", "kl_weight=0.1", "optimizer.ema_decay=0.9"],
    ],
    ids=["leave-one-out", "running-mean", "lora"],
)
def test_a_curriculum_resumes_exactly_in_the_middle_of_an_epoch(
    other: list[str], retrieval_settings: list[str], tmp_path: Path
) -> None:
    if any("lora" in setting for setting in other):
        pytest.importorskip("peft")
    settings = [*retrieval_settings, *other, 'reward.denominator="bag"', "loop.keep_states=9"]
    whole, cut = (_config([*settings, f"run={tmp_path / name}"]) for name in ("whole", "cut"))
    train_reinforce(whole)
    train_reinforce(cut)
    # Eight bags of two are left, four a batch, and five of three, three a batch.
    assert [entry["epoch"] for entry in _train_lines(Path(whole.run))] == [0, 0, 1, 1, 2, 3]
    for state in saved_states(Path(cut.run) / "state"):
        if state.name > "step-00000003":
            shutil.rmtree(state)
    facts = json.loads((Path(cut.run) / "state/step-00000003/state.json").read_text(encoding="utf-8"))
    assert (facts["epoch"], facts["position"]) == (1, 1)
    assert facts["memory"]["count"] == (3 if any("running" in setting for setting in other) else 0)
    train_reinforce(cut, resume=True)
    assert _lines(Path(cut.run)) == _lines(Path(whole.run))
    ours, theirs = (load_file(Path(config.run) / "last" / "model.safetensors") for config in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_low_rank_runs_save_plain_checkpoints_and_change_attention_alone(
    retrieval_settings: list[str], told_apart: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    settings = [*retrieval_settings]
    config = _config([*settings, "lora.rank=2", "optimizer.epochs=2", "optimizer.lr_multipliers.heads=0.0"])
    train_reinforce(config)
    before = load_checkpoint(told_apart / "captioner").model.state_dict()
    after = load_checkpoint(Path(config.run) / "last").model.state_dict()
    changed = {name.split(".", 3)[-1] for name in before if not torch.equal(before[name], after[name])}
    # A toy image is one token, which gets all attention whatever the query: `cross_query` has no gradient.
    assert changed == {f"{name}.weight" for name in ("self_qkv", "self_out", "cross_out")}


def test_sr_dessi_decodes_greedily_with_one_caption_of_an_image(
    retrieval_settings: list[str], told_apart: Path, tmp_path: Path
) -> None:
    settings = [*retrieval_settings, "curriculum=[]", "bags=", "optimizer.epochs=2"]
    settings += ['preset="sr-dessi"', 'decode="greedy"', "samples_per_image=1", 'baseline="running_mean"']
    config = _config(settings)
    train_reinforce(config)
    first, second = _train_lines(Path(config.run))[:2]
    assert config.decode == "greedy"
    assert first["baseline"] == 0.0
    assert second["baseline"] == pytest.approx(first["reward"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_pick_among_the_images_of_both(retrieval_settings: list[str], tmp_path: Path) -> None:
    """Greedy captions depend on no draw, so two processes must find the rewards of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = [*retrieval_settings, 'decode="greedy"', "samples_per_image=1", 'baseline="running_mean"']
    settings += ["optimizer.batch_size=12", "optimizer.clip_norm=0.0", "optimizer.lr=1e-3"]
    found = []
    for count in (1, 2):
        run = tmp_path / str(count)
        command = [sys.executable, "-m", "tellapart_training.cli", "train", "reinforce"]
        command += ["--config", str(RETRIEVAL), *(f"--set={each}" for each in [*settings, f"run={run}"])]
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        running = []
        for rank in range(count):
            paths = os.pathsep.join(str(CONFIG.parents[2] / name) for name in ("sdk", "training"))
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true", **group}
            environment = {**os.environ, "PYTHONPATH": paths, **(place if count > 1 else {})}
            running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        errors = [process.communicate(timeout=120)[1] for process in running]
        assert [process.returncode for process in running] == [0] * count, errors
        found.append(_train_lines(run))
    # Bags of two: six a batch, or three for each of two processes. Bags of three: four, or two.
    assert len(found[0]) == len(found[1]) == 4
    for one, two in zip(*found, strict=True):
        assert two["reward"] == pytest.approx(one["reward"], rel=1e-3)
        assert two["baseline"] == pytest.approx(one["baseline"], rel=1e-3, abs=1e-6)
