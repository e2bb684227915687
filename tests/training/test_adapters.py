"""LoRA: the counts of method 4.3, and that an adapted network starts and ends as a plain one."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tellapart.errors import ConfigError  # noqa: E402
from tellapart_model.compact import CompactPair  # noqa: E402
from tellapart_model.config import CompactConfig  # noqa: E402
from tellapart_training.adapters import (  # noqa: E402
    DECODER_TARGETS,
    add_lora,
    lora_of_run,
    merged,
)
from tellapart_training.config import LoraConfig  # noqa: E402

pytestmark = pytest.mark.train
IDS = torch.tensor([[2, 5, 6], [2, 7, 8]])


def _learns(network: Any, part: str) -> int:
    return sum(
        each.numel()
        for name, each in network.named_parameters()
        if each.requires_grad and name.startswith(part)
    )


def test_clipcap_trains_as_many_parameters_as_method_4_3_says() -> None:
    """Smoke test (ii) of method 10; nothing is allocated."""
    pytest.importorskip("transformers")
    from tellapart_model.clipcap import ClipCap
    from tellapart_model.clipcap_config import ClipCapConfig

    with torch.device("meta"):
        network = ClipCap(ClipCapConfig())
    lora_of_run(network, LoraConfig(rank=32, trunk=True))
    counts = [_learns(network, part) for part in ("language", "vision", "mapper", "")]
    assert counts == [1_769_472, 4_128_768, 31_468_800, 37_367_040]


def _pair() -> Any:
    torch.manual_seed(0)
    return CompactPair(CompactConfig.toy()).eval()


def _logits(pair: Any) -> Any:
    with torch.no_grad():
        features = torch.randn(2, 1, 1280, generator=torch.Generator().manual_seed(1))
        return pair.decoder(IDS, pair.cross_kv(features))


@pytest.mark.parametrize("init", ["kaiming", "normal"])
def test_an_adapter_changes_nothing_at_first_and_merges_into_the_same_outputs(init: str) -> None:
    pair = _pair()
    names, before = set(pair.state_dict()), _logits(pair)
    adapted = add_lora(pair, [DECODER_TARGETS], LoraConfig(rank=4, init=init))
    assert len(adapted) == 2 * 4
    learns = {name: each.requires_grad for name, each in pair.named_parameters()}
    assert not any(learns[f"{name}.base_layer.weight"] for name in adapted)
    assert learns["decoder.layers.0.feed_in.weight"]  # what has no adapter is left as it was
    assert torch.equal(_logits(pair), before)
    for name in adapted:
        torch.nn.init.normal_(pair.get_submodule(name).lora_B["default"].weight, std=0.1)
    after = _logits(pair)
    assert float((after - before).abs().max()) > 0.05
    plain = merged(pair)
    assert set(plain.state_dict()) == names
    torch.testing.assert_close(_logits(plain), after, rtol=1e-4, atol=1e-5)
    assert torch.equal(_logits(pair), after)  # the run goes on with its factors apart


def test_the_change_is_alpha_over_rank_times_both_factors() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2))
    before = layer[0].weight.detach().clone()
    add_lora(layer, ["0"], LoraConfig(rank=32, alpha=16, init="normal"))
    first, second = layer[0].lora_A["default"].weight, layer[0].lora_B["default"].weight
    torch.nn.init.normal_(second)
    torch.testing.assert_close(merged(layer)[0].weight, before + 0.5 * second @ first)


def test_the_normal_start_has_deviation_one() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(500, 4))
    add_lora(layer, ["0"], LoraConfig(rank=32, init="normal"))
    assert float(layer[0].lora_A["default"].weight.detach().std()) == pytest.approx(1.0, abs=0.03)
    assert float(layer[0].lora_B["default"].weight.detach().abs().max()) == 0.0


def test_a_run_learns_factors_and_the_bridge_and_keeps_the_decoder() -> None:
    pair = _pair()
    lora_of_run(pair, LoraConfig(rank=2, trunk=True))
    learns = {name for name, each in pair.named_parameters() if each.requires_grad}
    assert all("lora" in name for name in learns if name.startswith(("decoder", "trunk")))
    assert any(name.startswith("trunk") for name in learns)
    assert {name for name in learns if name.startswith("bridge")} == {
        name for name, _ in _pair().named_parameters() if name.startswith("bridge")
    }
    features = pair.features(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert set(merged(pair).state_dict()) == set(_pair().state_dict())
    assert features.shape == (1, 1, 1280)


def test_rank_zero_adapts_nothing_and_a_pattern_must_name_something() -> None:
    pair = _pair()
    lora_of_run(pair, LoraConfig())
    assert [type(module) for module in pair.modules()] == [type(module) for module in _pair().modules()]
    with pytest.raises(ConfigError, match="no module"):
        add_lora(pair, ["nothing"], LoraConfig(rank=2))
