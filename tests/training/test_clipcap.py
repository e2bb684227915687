"""ClipCap at toy size against transformers' own generation, the homes of its weights, its full size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from tellapart.errors import CheckpointError, ConfigError  # noqa: E402
from tellapart_model.clipcap import (  # noqa: E402
    ClipCap,
    from_pretrained_parts,
    load_clipcap,
    load_original_weights,
    save_clipcap,
    stop_token_ids,
)
from tellapart_model.clipcap_config import ClipCapConfig  # noqa: E402

pytestmark = pytest.mark.train


def toy(seed: int = 0) -> ClipCap:
    torch.manual_seed(seed)
    model = ClipCap(ClipCapConfig.toy()).eval()
    with torch.no_grad():  # the library starts GPT-2 so small that every token is about as likely
        for parameter in model.language.parameters():
            parameter.mul_(8)
    return model


def toy_pixels(images: int = 2) -> torch.Tensor:
    return torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_full_size_has_the_published_number_of_parameters() -> None:
    # design/method.md, section 2: 87,849,216 + 31,468,800 + 124,439,808 = 243.8 M.
    with torch.device("meta"):
        model = ClipCap(ClipCapConfig())
    parts = (model.vision, model.mapper, model.language)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [
        87_849_216,
        31_468_800,
        124_439_808,
    ]


def test_the_prefix_is_the_projected_embedding_through_the_mapper() -> None:
    model, pixels = toy(), toy_pixels()
    embedding = model.vision(pixel_values=pixels).image_embeds
    first, _, last = model.mapper
    by_hand = torch.tanh(embedding @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(model.prefix(pixels).flatten(1), by_hand)
    assert not torch.allclose(embedding.norm(dim=1), torch.ones(2))  # not of unit length
    assert model.prefix(pixels).shape == (2, 3, 16)


@pytest.mark.parametrize("beams", [1, 4])
def test_generation_equals_the_library_without_stops(beams: int) -> None:
    # Independent source: transformers' generate() on the same prefix.
    model, pixels = toy(), toy_pixels(3)
    ours = model.generate(pixels, stop_ids=(), beams=beams, max_new_tokens=9)
    model.language.generation_config.eos_token_id = None
    model.language.generation_config.pad_token_id = 0
    for row, caption in zip(pixels, ours, strict=True):
        theirs = model.language.generate(
            inputs_embeds=model.prefix(row[None]),
            attention_mask=torch.ones(1, 3, dtype=torch.int64),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=9,
        )
        assert tuple(theirs[0].tolist()) == caption


def test_cached_greedy_equals_teacher_forcing() -> None:
    model, pixels = toy(), toy_pixels(1)
    (caption,) = model.generate(pixels, stop_ids=(), beams=1)
    assert len(caption) == 12  # max_length 15 less 3 prefix vectors
    with torch.no_grad():
        logits = model(pixels, torch.tensor([caption]))
    assert tuple(logits.argmax(-1)[0].tolist()) == caption


def test_a_caption_ends_with_its_first_stop() -> None:
    model, pixels = toy(), toy_pixels(1)
    (free,) = model.generate(pixels, stop_ids=(), beams=1)
    stop = free[4]
    (stopped,) = model.generate(pixels, stop_ids={stop}, beams=1)
    assert stopped == free[: free.index(stop) + 1]
    (beam,) = model.generate(pixels, stop_ids={stop}, beams=3)
    assert stop not in beam[:-1]


def test_stop_tokens_are_those_that_hold_a_full_stop() -> None:
    assert stop_token_ids({"a": 0, ".": 1, "Ġ.": 2, "...": 3, ",": 4}) == {1, 2, 3}


def test_a_folder_keeps_the_model(tmp_path: Path) -> None:
    model, pixels = toy(), toy_pixels()
    save_clipcap(tmp_path / "clipcap", model)
    again = load_clipcap(tmp_path / "clipcap")
    ids = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(model(pixels, ids), again(pixels, ids))
    assert again.language.lm_head.weight is again.language.transformer.wte.weight


def test_parts_and_an_original_state_dict_make_the_model(tmp_path: Path) -> None:
    source = toy(1)
    source.vision.save_pretrained(tmp_path / "clip")
    source.language.save_pretrained(tmp_path / "gpt2")
    original = {f"clip_project.model.{name}": value for name, value in source.mapper.state_dict().items()}
    original |= {f"gpt.{name}": value.clone() for name, value in source.language.state_dict().items()}
    table = original["gpt.transformer.wte.weight"]
    original["gpt.transformer.wte.weight"] = torch.cat(
        [table, torch.ones(5, table.shape[1])]
    )  # as its authors did
    original["gpt.transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    torch.save(original, tmp_path / "clipcap.pt")
    save_file(
        {name: value.contiguous() for name, value in original.items()}, tmp_path / "clipcap.safetensors"
    )
    config = tmp_path / "gpt2" / "config.json"
    assert json.loads(config.read_text())["n_embd"] == 16
    for name in ("clipcap.pt", "clipcap.safetensors"):
        model = ClipCap(ClipCapConfig.toy()).eval()
        model.vision.load_state_dict(source.vision.state_dict())
        load_original_weights(model, tmp_path / name)
        ids = torch.tensor([[1, 2], [3, 4]])
        assert torch.equal(model(toy_pixels(), ids), source(toy_pixels(), ids))
    assembled = from_pretrained_parts(tmp_path / "clip", tmp_path / "gpt2")
    assert torch.equal(assembled.vision(toy_pixels()).image_embeds, source.vision(toy_pixels()).image_embeds)
    assert torch.equal(assembled.language.lm_head.weight, source.language.lm_head.weight)
    assert assembled.config.prefix_length == 10


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    model = toy()
    with pytest.raises(CheckpointError, match="no such file"):
        load_original_weights(model, tmp_path / "none.pt")
    torch.save({"gpt.transformer.wte.weight": torch.ones(40, 16)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no ClipCap"):
        load_original_weights(model, tmp_path / "other.pt")
    torch.save({"clip_project.model.0.weight": torch.ones(2, 2)}, tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match="missing"):
        load_original_weights(model, tmp_path / "small.pt")
    torch.save(model, tmp_path / "pickled.pt")
    with pytest.raises(CheckpointError, match="plain state dict"):
        load_original_weights(model, tmp_path / "pickled.pt")
    save_clipcap(tmp_path / "clipcap", model)
    (tmp_path / "clipcap" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_clipcap(tmp_path / "clipcap")


def test_configuration_is_readable_and_checks_itself() -> None:
    config = ClipCapConfig.toy()
    assert ClipCapConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError, match="did you mean 'prefix_length'"):
        ClipCapConfig.from_json('{"prefix_lenght": 3}')
    with pytest.raises(ConfigError, match="patch_px"):
        ClipCapConfig(image_px=225)
    with pytest.raises(ConfigError, match="architecture"):
        ClipCapConfig.from_json('{"architecture": "compact"}')
