"""Self-critical training: the reward, the estimator, and a toy run in which the reward rises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tellapart_model.checkpoint import load_checkpoint  # noqa: E402
from tellapart_model.generate import sample  # noqa: E402
from tellapart_training.config import ReinforceConfig  # noqa: E402
from tellapart_training.config_file import load_config  # noqa: E402
from tellapart_training.losses import IGNORED, leave_one_out_advantage, reinforce_loss  # noqa: E402
from tellapart_training.metrics import DocumentFrequencies, cider_d  # noqa: E402
from tellapart_training.pair import open_pair  # noqa: E402
from tellapart_training.reinforce import END_WORD, CiderReward, train_reinforce  # noqa: E402

pytestmark = pytest.mark.train
CONFIG = Path(__file__).parents[2] / "training" / "configs" / "toy_reinforce.toml"
REFERENCES = [["a red dog runs", "a dog on grass"], ["a cat jumps", "a small cat on snow"]]


def test_advantage_is_what_exceeds_the_mean_of_the_others() -> None:
    found = leave_one_out_advantage(torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert found.tolist() == [[3.0, -1.5, -1.5], [0.0, 0.0, 0.0]]


def test_gradient_makes_the_better_caption_likelier() -> None:
    logits = torch.zeros(2, 1, 4, requires_grad=True)
    labels = torch.tensor([[1], [2]])
    reinforce_loss(logits, labels, torch.tensor([2.0, -1.0])).backward()
    # d/dlogit of -A log softmax is A (p - onehot), with p = 1/4.
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([0.5, -1.5, 0.5, 0.5]))
    torch.testing.assert_close(logits.grad[1, 0], torch.tensor([-0.25, -0.25, 0.75, -0.25]))


def test_tokens_behind_the_end_do_not_count() -> None:
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    reinforce_loss(logits, torch.tensor([[1, 3, IGNORED]]), torch.tensor([1.0])).backward()
    assert float(logits.grad[0, 2].abs().sum()) == 0.0
    assert float(logits.grad[0, 1].abs().sum()) > 0.0


def test_reward_is_cider_d_with_the_end_as_a_word(toy_world: Path) -> None:
    pair = open_pair(toy_world / "init")
    reward = CiderReward(pair, REFERENCES)
    ended = pair.encode("a red dog runs")[1:]  # without the start, with the end
    cut = ended[:-1]
    drawn = torch.tensor([[*ended, 0], [*cut, 0, 0]])
    words = [[[*text.split(), END_WORD] for text in texts] for texts in REFERENCES]
    frequencies = DocumentFrequencies.of_references(words)
    texts = [["a", "red", "dog", "runs"], ["a", "red", "dog", "runs"]]
    expected = cider_d([[*texts[0], END_WORD], texts[1]], [words[0], words[0]], frequencies=frequencies)
    found = reward(drawn, [0, 0])
    assert found.tolist() == pytest.approx(expected)
    assert found[0] > found[1]


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
