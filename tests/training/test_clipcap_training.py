"""ClipCap in the trainer: what is drawn against its plain forward, and toy runs from end to end."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tellapart.byte_pairs import byte_signs  # noqa: E402
from tellapart.errors import CheckpointError  # noqa: E402
from tellapart_model.clipcap import ClipCap, save_clipcap, stop_token_ids  # noqa: E402
from tellapart_model.clipcap_config import CLIP_MEAN, CLIP_STD, ClipCapConfig  # noqa: E402
from tellapart_training.captioner import open_captioner  # noqa: E402
from tellapart_training.clipcap_captioner import TrainedClipCap, open_clipcap  # noqa: E402
from tellapart_training.config import MleConfig, ReinforceConfig, RetrieverConfig  # noqa: E402
from tellapart_training.config_file import load_config  # noqa: E402
from tellapart_training.estimator import policy_logprobs, reinforce_loss, token_logprobs  # noqa: E402
from tellapart_training.losses import caption_inputs_and_labels  # noqa: E402
from tellapart_training.mle import train_mle  # noqa: E402
from tellapart_training.reinforce import train_reinforce  # noqa: E402
from tellapart_training.retriever import train_retriever  # noqa: E402
from tellapart_training.state import saved_states  # noqa: E402
from toy_families import liven, write_pairs  # noqa: E402

pytestmark = pytest.mark.train
CONFIGS = Path(__file__).parents[2] / "training" / "configs"
LETTERS = "abcdefgh"  # the words of this world: each is one token with its space


@pytest.fixture(scope="module")
def clipcap(tmp_path_factory: pytest.TempPathFactory, toy_world: Path) -> Path:
    """A random ClipCap that writes letters and full stops, and captions of letters for the toy images."""
    folder = tmp_path_factory.mktemp("clipcap") / "init"
    signs, space = byte_signs(), byte_signs()[0x20]
    pieces = [*signs, *(space + letter for letter in LETTERS), "<|endoftext|>"]
    write_pairs(folder, pieces, tuple(f"{space} {letter}" for letter in LETTERS))
    torch.manual_seed(1)
    model = ClipCap(dataclasses.replace(ClipCapConfig.toy(), vocabulary_size=len(pieces))).eval()
    liven(model)  # so that captions differ from picture to picture
    likely = [signs.index("."), *range(256, 256 + len(LETTERS)), *map(signs.index, LETTERS)]
    with torch.no_grad():
        body = model.language.transformer
        body.ln_f.bias[0] = 3.0  # what the head always reads, so that a row can be likely in itself
        body.wte.weight.mul_(10)
        body.wte.weight[likely, 0] = 2.0
        body.wte.weight[signs.index("."), 0] = 2.5
    save_clipcap(folder, model)
    lines, draw = [], random.Random(0)
    for index in range(24):
        own = draw.sample(LETTERS, 3)  # words that all images share would count nothing in CIDEr-D
        words = [" ".join(draw.sample(own, 3)) for _ in range(5)]
        lines.append(json.dumps({"image": f"{index}.png", "split": "train", "captions": words}))
    (folder.parent / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def settings(toy_settings: list[str], clipcap: Path) -> list[str]:
    """`--set` arguments of a run that starts from the toy ClipCap, its image tower frozen."""
    return [
        *toy_settings, f"init={clipcap}", f"data.captions={clipcap.parent / 'captions.jsonl'}",
        'trunk="frozen"', "views=1", "augment.enabled=false",
    ]  # fmt: skip


def _reinforce(settings: list[str], *, resume: bool = False) -> Path:
    config = load_config(CONFIGS / "toy_reinforce.toml", stage="reinforce", overrides=settings)
    assert isinstance(config, ReinforceConfig)
    train_reinforce(config, resume=resume)
    return Path(config.run)


def _lines(run: Path) -> list[dict[str, Any]]:
    """Training lines of a run without what a clock gave."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clocks = ("elapsed_s", "steps_per_s")
    return [
        {name: each for name, each in entry.items() if name not in clocks and not name.startswith("time_")}
        for entry in entries
        if entry["kind"] == "train"
    ]


def _changed(run: Path, init: Path, depth: int = 1) -> set[str]:
    before, after = (load_file(folder / "model.safetensors") for folder in (init, run / "last"))
    assert set(before) == set(after)
    return {
        ".".join(name.split(".")[:depth]) for name in before if not torch.equal(before[name], after[name])
    }


def _pixels(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)


def _scaled(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(0, 3, 1, 2)


def _plain_logprobs(model: ClipCap, pixels: torch.Tensor, rows: torch.Tensor, t: float) -> torch.Tensor:
    """Summed log-probability of each row up to its first stop, by `ClipCap.forward`, row by row."""
    stops, sums = open_ends(rows), []
    for image, row, end in zip(_scaled(pixels), rows, stops, strict=True):
        logp = (model(image[None], row[None, :end])[0] / t).log_softmax(-1)
        sums.append(logp.gather(1, row[:end, None]).sum())
    return torch.stack(sums)


def open_ends(rows: torch.Tensor) -> list[int]:
    """How many tokens of each row are real; byte signs have one full stop."""
    stop = byte_signs().index(".")
    return [row.tolist().index(stop) + 1 if stop in row.tolist() else len(row) for row in rows]


def test_what_is_drawn_has_the_log_probability_and_gradient_of_the_plain_network(clipcap: Path) -> None:
    captioner, pixels, t = open_clipcap(clipcap), _pixels(8), 0.8
    network, marks = captioner.network, captioner.marks
    torch.manual_seed(0)
    condition = network.condition(network.features(pixels))
    drawn = captioner.sample(condition.detach(), 12, t)
    assert len(set(open_ends(drawn))) > 1  # rows end apart, so some were packed anew on the way
    start = torch.full_like(drawn[:, :1], marks.start)
    inputs, labels = caption_inputs_and_labels(torch.cat([start, drawn], 1), marks.pad)
    policy = policy_logprobs(network.logits(inputs, condition), t, marks)
    ours, plain = token_logprobs(policy, labels), _plain_logprobs(network, pixels, drawn, t)
    torch.testing.assert_close(ours.sum(1), plain, rtol=1e-4, atol=1e-4)
    rewards = torch.linspace(-1, 1, 8)
    names = [name for name, _ in network.named_parameters()]
    found, wanted = (
        torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        for loss in (reinforce_loss(ours, labels, rewards, "captions"), -(plain * rewards).mean())
    )
    for name, one, two in zip(names, found, wanted, strict=True):
        assert (one is None) == (two is None), name
        if one is not None:
            assert float((one - two).norm()) <= 1e-3 * (1e-2 + float(two.norm())), name


def test_steps_over_the_cache_give_the_logits_of_whole_rows(clipcap: Path) -> None:
    captioner = open_clipcap(clipcap)
    network, start = captioner.network, captioner.marks.start
    condition = network.condition(network.features(_pixels(4))).detach()
    ids = torch.randint(0, start, (4, 12), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = start
    ids[2, 5:] = start  # a row that is over
    walk, kept = network.walk(condition, 12), torch.tensor([3, 1])
    with torch.no_grad():
        found = [walk.step(ids[:, at : at + 1]) for at in range(7)]
        walk.keep(kept)
        packed = [walk.step(ids[kept, at : at + 1]) for at in range(7, 12)]
        whole = network.logits(ids, condition)
    torch.testing.assert_close(torch.stack(found, 1), whole[:, :7], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.stack(packed, 1), whole[kept, 7:], rtol=1e-4, atol=1e-4)


def test_greedy_over_the_cache_is_the_search_of_the_network(clipcap: Path) -> None:
    captioner, pixels = open_clipcap(clipcap), _pixels(5)
    found = captioner.greedy(captioner.network.condition(captioner.network.features(pixels)), 12)
    wanted = captioner.network.generate(_scaled(pixels), stop_ids=captioner.marks.ends, beams=1)
    for row, caption in zip(found.tolist(), wanted, strict=True):
        assert tuple(index for index in row if index != captioner.marks.pad) == caption
    assert len(set(wanted)) > 1


def test_samples_follow_the_distribution_of_the_network(clipcap: Path) -> None:
    captioner = open_clipcap(clipcap)
    condition = captioner.network.condition(captioner.network.features(_pixels(1)))
    torch.manual_seed(0)
    first = captioner.sample(condition.expand(-1, 4000, -1, -1), 1, 1.0)[:, 0]
    share = torch.bincount(first, minlength=captioner.marks.start) / 4000
    logits = captioner.network.logits(torch.tensor([[captioner.marks.start]]), condition)[0, 0].detach()
    assert float((share - logits.softmax(0)).abs().max()) < 0.02  # four standard errors of a share of 0.1


def test_captions_become_the_ids_that_the_export_gives_them_and_end_at_a_stop(clipcap: Path) -> None:
    from tellapart_export.families.clipcap import open_checkpoint
    from tellapart_export.words import device_tokenizer

    captioner, subject = open_captioner(clipcap), open_checkpoint(clipcap)
    assert isinstance(captioner, TrainedClipCap)
    device = device_tokenizer(subject.vocabulary, subject.files)
    start, stop = captioner.marks.start, byte_signs().index(".")
    assert (device.start_id, subject.checkpoint_sha256) == (start, captioner.sha256)
    assert captioner.marks.ends == stop_token_ids(json.loads((clipcap / "vocab.json").read_text()))
    ids = captioner.encode("a b c")
    assert ids == device.encode("a b c.")[:-1]
    assert ids[-1] == stop
    assert captioner.decode([*ids[1:], start, start]) == "a b c"
    cut = captioner.encode("a b c d e f g h a b c d e f g h")
    assert (len(cut), cut[-1]) == (captioner.max_tokens, stop)
    assert [captioner.has_end(cut), captioner.has_end(cut[:-1])] == [True, False]


def test_the_reward_rises_vision_stays_and_the_export_reads_the_result(
    settings: list[str], clipcap: Path
) -> None:
    from tellapart_export.families import open_checkpoint

    run = _reinforce(settings)
    rewards = [entry["reward"] for entry in _lines(run)]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])
    assert _changed(run, clipcap) == {"mapper", "language"}
    subject, trained = open_checkpoint(run / "last"), open_clipcap(run / "last")
    facts = json.loads((run / "last" / "training.json").read_text(encoding="utf-8"))
    assert (facts["stage"], facts["init_sha256"]) == ("reinforce", open_clipcap(clipcap).sha256)
    assert (subject.family, subject.checkpoint_sha256) == ("clipcap", trained.sha256)
    assert subject.logits is not None
    pixels, ids = _pixels(2), torch.tensor([trained.encode("a b c")[:-1]] * 2)
    with torch.no_grad():
        ours = trained.network.logits(ids, trained.network.condition(trained.network.features(pixels)))
        torch.testing.assert_close(subject.logits(pixels, ids)[..., :-1], ours, rtol=1e-4, atol=1e-4)


def test_low_rank_runs_change_attention_alone_and_save_plain_folders(
    settings: list[str], clipcap: Path
) -> None:
    pytest.importorskip("peft")
    more = ["lora.rank=2", "lora.trunk=true", "optimizer.lr_multipliers.trunk=1.0", "optimizer.epochs=2"]
    run = _reinforce([*settings, *more, 'trunk="tuned"', "optimizer.lr_multipliers.heads=0.0"])
    changed = {name.rsplit(".", 1)[0] for name in _changed(run, clipcap, depth=9)}
    tower = "vision.vision_model.encoder.layers"
    assert changed == {
        *(f"language.transformer.h.{layer}.attn.{name}" for layer in (0, 1) for name in ("c_attn", "c_proj")),
        *(f"{tower}.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qkv"),
        *(f"{tower}.{layer}.mlp.{name}" for layer in (0, 1) for name in ("fc1", "fc2")),
    }
    open_clipcap(run / "last")


@pytest.mark.parametrize("lora", [0, 2])
def test_a_curriculum_with_self_retrieval_resumes_exactly(
    lora: int, settings: list[str], toy_world: Path, tmp_path: Path
) -> None:
    if lora:
        pytest.importorskip("peft")
    names = [f"{index}.png" for index in range(24)]
    sizes = {str(size): [names[at : at + size] for at in range(0, 24, size)] for size in (2, 3)}
    page = {
        "format": 1, "source": "toy", "embedding": {"name": "none", "sha256": ""}, "seed": 0,
        "near_duplicate": 0.97, "counts": {}, "bags": {"hard": sizes},
    }  # fmt: skip
    (tmp_path / "bags.json").write_text(json.dumps(page), encoding="utf-8")
    more = [
        f"reward.scorer={toy_world / 'init'}", "reward.self_retrieval=1.0", f"bags={tmp_path / 'bags.json'}",
        'curriculum=[{epochs=1,size=2,band="hard"},{epochs=1,size=3,band="hard"}]', "optimizer.epochs=2",
        "optimizer.batch_size=8", f"lora.rank={lora}", "kl_weight=0.1", 'baseline="greedy"', "mle_weight=0.1",
        "loop.save_every=1", "loop.keep_states=9", "loop.evaluate_every=2",
    ]  # fmt: skip
    whole = _reinforce([*settings, *more, f"run={tmp_path / 'whole'}"])
    assert all(set(entry) >= {"reward_self_retrieval", "reward_cider_d", "kl"} for entry in _lines(whole))
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    states = saved_states(cut / "state")
    for state in states[1:]:
        shutil.rmtree(state)
    for name in ("last", "best"):
        shutil.rmtree(cut / name)
    assert _lines(_reinforce([*settings, *more, f"run={cut}"], resume=True)) == _lines(whole)
    assert len(states) == len(_lines(whole)) > 2
    ours, theirs = (load_file(run / "last" / "model.safetensors") for run in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_cross_entropy_teaches_captions_too(settings: list[str], clipcap: Path) -> None:
    more = ["optimizer.lr=0.01", "optimizer.epochs=12", "optimizer.ema_decay=0.0", "loop.evaluate_every=12"]
    config = load_config(CONFIGS / "toy_mle.toml", stage="mle", overrides=[*settings, *more])
    assert isinstance(config, MleConfig)
    train_mle(config)
    losses = [entry["loss"] for entry in _lines(Path(config.run))]
    assert losses[-1] < 0.7 * losses[0]
    assert _changed(Path(config.run), clipcap) == {"mapper", "language"}
    last = json.loads((Path(config.run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert {"tuning_loss", "cider_d"} <= set(last)
    assert "text_to_image_r1" not in last


def test_what_needs_a_retriever_or_words_says_so(settings: list[str], clipcap: Path, tmp_path: Path) -> None:
    retriever = load_config(CONFIGS / "toy_retriever.toml", stage="retriever", overrides=settings)
    assert isinstance(retriever, RetrieverConfig)
    with pytest.raises(CheckpointError, match=r"needs a retriever, and .* 'clipcap' has none"):
        train_retriever(retriever)
    shutil.copytree(clipcap, tmp_path / "mute")
    (tmp_path / "mute" / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt is missing; copy vocab\.json and merges\.txt"):
        open_captioner(tmp_path / "mute")
    shutil.copytree(clipcap, tmp_path / "strange")
    (tmp_path / "strange" / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="are not the words of its network"):
        open_captioner(tmp_path / "strange")
