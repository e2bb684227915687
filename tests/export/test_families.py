"""Toy checkpoints of each family through the export, and their bundles on a device without torch.

What the network itself says comes from transformers: its own processor, its own `generate`, its own
decoding of tokens, none of which the export or the device uses.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402

from tellapart import Captioner, DecodeOptions, Retriever  # noqa: E402
from tellapart.bundle import open_bundle  # noqa: E402
from tellapart.cli import main  # noqa: E402
from tellapart.errors import BundleError, CheckpointError, ParityError, UsageError  # noqa: E402
from tellapart_export.build import ExportOptions, export_bundle  # noqa: E402
from tellapart_export.families import FAMILIES, open_checkpoint  # noqa: E402
from toy_families import (  # noqa: E402
    make_blip,
    make_clip,
    make_clipcap,
    make_git,
    make_siglip,
    make_smolvlm,
    make_vit_gpt2,
)

pytestmark = pytest.mark.train
ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "samples" / "photos").glob("*.*"))

CAPTIONERS = {
    "vision-encoder-decoder": make_vit_gpt2,
    "blip": make_blip,
    "git": make_git,
    "clipcap": make_clipcap,
    "smolvlm": make_smolvlm,
}
TARGETS = ("onnx", "openvino") if importlib.util.find_spec("openvino") else ("onnx",)
MAKERS = {**CAPTIONERS, "clip": make_clip, "siglip": make_siglip}


def _unit(found: Any) -> np.ndarray:
    """Rows of unit length; transformers 4 gives the rows alone, 5 among other things."""
    rows = getattr(found, "pooler_output", found).numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`made(family)` -> checkpoint and bundle, each made once; not to be changed."""
    base = tmp_path_factory.mktemp("families")

    def make(family: str) -> tuple[Path, Path]:
        folder = base / family
        if not folder.exists():
            MAKERS[family](folder / "checkpoint")
            export_bundle(folder / "checkpoint", folder / "bundle", ExportOptions(targets=TARGETS))
        return folder / "checkpoint", folder / "bundle"

    return make


def generated(family: str, folder: Path, banned: list[int], longest: int) -> list[list[int]]:
    """Greedy captions of `PHOTOS` by the library's own generation, start and end marks cut off."""
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    if family == "clipcap":
        from tellapart_model.clipcap import load_clipcap, stop_token_ids

        clipcap = load_clipcap(folder)
        stops = stop_token_ids(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        pixels = processor(photos, return_tensors="pt")["pixel_values"]
        return [
            list(row) for row in clipcap.generate(pixels, stop_ids=stops, beams=1, max_new_tokens=longest)
        ]
    if family == "smolvlm":
        return answered(folder, photos, banned, longest)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    pixels = processor(photos, return_tensors="pt")["pixel_values"]
    name = {
        "vision-encoder-decoder": "VisionEncoderDecoderModel",
        "blip": "BlipForConditionalGeneration",
        "git": "GitForCausalLM",
    }[family]
    # Eager, as GPT-2's other attentions pass over the scales of its configuration.
    model = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()
    settings = {
        "max_new_tokens": longest,
        "num_beams": 1,
        "do_sample": False,
        "suppress_tokens": banned or None,
    }
    found = model.generate(pixel_values=pixels, **settings)
    end = 3 if family in ("blip", "git") else model.generation_config.eos_token_id
    rows = [row[1:].tolist() for row in found]
    return [row[: row.index(end)] if end in row else row for row in rows]


def answered(folder: Path, photos: list[Any], banned: list[int], longest: int) -> list[list[int]]:
    """Greedy answers of a SmolVLM to its default question, prompt written out by hand."""
    words = transformers.GPT2TokenizerFast.from_pretrained(folder)
    around = "<fake_token_around_image>"
    picture = f"{around}<global-img>{'<image>' * 4}{around}"
    question = "Describe this image in one short sentence."
    text = f"<|im_start|>User:{picture}{question}<end_of_utterance>\nAssistant:"
    ids = torch.tensor([words(text)["input_ids"]])
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    model = transformers.SmolVLMForConditionalGeneration.from_pretrained(folder).eval()
    end, rows = model.generation_config.eos_token_id, []
    for photo in photos:
        pixels = processor(photo, return_tensors="pt", do_image_splitting=False)["pixel_values"]
        found = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=longest,
            do_sample=False, suppress_tokens=banned,
        )  # fmt: skip
        row = found[0, ids.shape[1] :].tolist()
        rows.append(row[: row.index(end)] if end in row else row)
    return rows


@pytest.mark.parametrize("family", CAPTIONERS)
def test_the_device_says_what_transformers_says(family: str, made: Any) -> None:
    folder, bundle = made(family)
    with Captioner.open(bundle) as captioner:
        tokenizer, page = captioner._engine.tokenizer, captioner.bundle.manifest
        banned = {tokenizer.pad_id, tokenizer.unknown_id, tokenizer.start_id} - {tokenizer.end_id}
        found = [captioner.caption(path, options=DecodeOptions(beams=1)) for path in PHOTOS]
        # Each of these came out of one run: no step was needed.
        assert "decoder" not in captioner._engine._opened[os.getpid()].graphs
        streamed = "".join(captioner.stream(PHOTOS[0]))
    wanted = generated(family, folder, sorted(banned), page.decoding.max_new_tokens)
    assert [list(caption.token_ids) for caption in found] == wanted
    assert len({caption.token_ids for caption in found}) > 1  # else equal tokens would say little
    assert streamed == found[0].text
    if family == "clipcap":
        stop = tokenizer.encode(".")[1]
        assert any(caption.token_ids[-1] == stop and not caption.truncated for caption in found)


@pytest.mark.parametrize("family", CAPTIONERS)
def test_the_manifest_tells_what_was_proved(family: str, made: Any) -> None:
    with open_bundle(made(family)[1]) as bundle:
        manifest = bundle.manifest
    parity = manifest.parity
    for target in TARGETS:
        found = parity if target == "onnx" else parity[target]
        assert found["greedy_tokens_equal"] == 8
        assert found["greedy_draws"] == 0
        assert 0 <= found["max_logit_error"] < 1e-3
    assert parity["texts_cut_alike"] == 6
    assert family == "clipcap" or parity["preprocessing_max_abs"] < 1e-5
    assert manifest.source["family"] == family
    assert "model.safetensors" in manifest.source["checkpoint_files"]
    names = {
        (graph.role, graph.target): [tensor.name for tensor in (*graph.inputs, *graph.outputs)]
        for graph in manifest.graphs
    }
    roles = {
        "vision": ["pixels", "cross_kv"],
        "decoder": ["ids", "past_kv", "cross_kv", "logits", "present_kv"],
    }
    assert names == {(role, target): roles[role] for role in roles for target in TARGETS}


def test_a_device_without_torch_captions_with_the_bundle(made: Any) -> None:
    _, bundle = made("vision-encoder-decoder")
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        assert name.split('.')[0] not in ('torch', 'transformers', 'onnx', 'tokenizers'), name\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from tellapart.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["caption", str(PHOTOS[0]), "--model", str(bundle), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT / "sdk")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["caption"]
    assert main(["verify", str(bundle)]) == 0
    assert main(["info", str(bundle)]) == 0


def test_a_captioner_alone_says_so_where_a_retriever_is_asked_for(made: Any) -> None:
    with Captioner.open(made("vision-encoder-decoder")[1]) as captioner:
        view = captioner.look(PHOTOS[0])
        assert view.embedding.shape == (1, 0)
        assert view.cross_kv.shape == (4, 1, 2, 17, 16)
        with pytest.raises(BundleError, match="a retriever is needed"):
            captioner.retriever  # noqa: B018
        several = list(captioner.caption_many(PHOTOS[:2], options=DecodeOptions(beams=2, n_best=2)))
        assert [len(caption.alternatives) for caption in several] == [1, 1]


def test_the_default_search_is_the_checkpoints(made: Any, tmp_path: Path) -> None:
    folder, bundle = made("vision-encoder-decoder")
    with open_bundle(bundle) as opened:
        decoding = opened.manifest.decoding
    assert (decoding.beams, decoding.max_new_tokens) == (4, 16)
    with pytest.raises(UsageError, match="rerank needs a retriever"):
        export_bundle(folder, tmp_path / "out", ExportOptions(rerank=0.5))


def test_a_module_that_is_not_the_network_is_found_out(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tellapart_export.families import gpt2

    monkeypatch.setattr(gpt2, "scaled", lambda attention, query: query * 1.5)
    with pytest.raises(ParityError, match=r"photo 1, token [12], logits"):
        export_bundle(made("vision-encoder-decoder")[0], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_decoder_is_refused(tmp_path: Path) -> None:
    page = {
        "model_type": "vision-encoder-decoder",
        "encoder": {"model_type": "vit"},
        "decoder": {"model_type": "bert"},
    }
    (tmp_path / "config.json").write_text(json.dumps(page))
    with pytest.raises(CheckpointError, match=r"'bert'.*'gpt2'"):
        open_checkpoint(tmp_path)


def test_clip_embeds_as_transformers_does(made: Any) -> None:
    folder, bundle = made("clip")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    words = transformers.CLIPTokenizerFast.from_pretrained(folder)
    texts = ["The dog runs!", "", "a hat in the rain at the"]
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    with torch.no_grad():
        images = _unit(model.get_image_features(**processor(photos, return_tensors="pt")))
        ids = words(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")["input_ids"]
        rows = _unit(model.get_text_features(ids))
    with Retriever.open(bundle) as retriever:
        assert retriever.width == 12
        np.testing.assert_allclose(retriever.embed_images(PHOTOS), images, atol=1e-5)
        found = retriever.embed_texts(texts)
        np.testing.assert_allclose(found[:2], rows[:2], atol=1e-5)
        # Longer than the tower reads: windows, not a cut.
        long = retriever.embed_texts(["the dog " * 40])
        np.testing.assert_allclose(np.linalg.norm(long), 1.0, rtol=1e-5)
    with pytest.raises(BundleError, match="a captioner is needed"):
        Captioner.open(bundle)
    with open_bundle(bundle) as opened:
        parity = opened.manifest.parity
        assert opened.manifest.kind == ("retriever",)
        assert opened.manifest.preprocessing.resize_px == 36
    assert set(parity["embeddings"]) == {"images", "texts"}
    assert "greedy_tokens_equal" not in parity


@pytest.mark.long
def test_tinyclip_is_a_clip_of_other_sizes(tmp_path: Path) -> None:
    make_clip(tmp_path / "checkpoint", tiny=True)
    manifest = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert (manifest.kind, manifest.source["family"]) == (("retriever",), "clip")
    rows = manifest.parity["embeddings"]
    assert max(entry["max_abs"] for entry in rows.values()) < 1e-5
    assert min(entry["cosine"] for entry in rows.values()) > 0.99999


def test_siglip_embeds_as_transformers_does(made: Any) -> None:
    folder, bundle = made("siglip")
    model = transformers.SiglipModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    words = transformers.SiglipTokenizer.from_pretrained(folder)
    texts = ["The dog runs!", "", "two red 2", "Ünknown"]
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    with torch.no_grad():
        images = _unit(model.get_image_features(**processor(photos, return_tensors="pt")))
        ids = words(texts, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
        rows = _unit(model.get_text_features(ids["input_ids"]))
    assert len({tuple(row) for row in ids["input_ids"].tolist()}) == len(texts)
    with Retriever.open(bundle) as retriever:
        for found, wanted in ((retriever.embed_images(PHOTOS), images), (retriever.embed_texts(texts), rows)):
            np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert np.ptp(retriever.embed_texts(texts), axis=0).max() > 1e-3  # else equal rows would say little


def test_a_retriever_makes_no_captions_to_shape(made: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="beams shape captions"):
        export_bundle(made("clip")[0], tmp_path / "out", ExportOptions(beams=2))


def test_clipcap_ends_after_a_stop_and_nowhere_else() -> None:
    from tellapart_export.families.clipcap import with_end
    from tellapart_export.graphs import BARRED

    found = with_end(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([True, False]))
    assert found.tolist() == [[BARRED, BARRED, 0.0], [3.0, 4.0, BARRED]]


def test_every_family_has_a_module() -> None:
    for name in set(FAMILIES.values()):
        assert (ROOT / "export" / "tellapart_export" / "families" / f"{name}.py").is_file()


def test_a_crop_and_a_short_side_are_read(made: Any, tmp_path: Path) -> None:
    from tellapart_export.pictures import check_preprocessing, read_preprocessing
    from toy_families import write_processor

    write_processor(
        tmp_path, "ViTImageProcessor", size={"shortest_edge": 40}, do_center_crop=True, resample=3,
        crop_size={"height": 32, "width": 32},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="built for 48 x 48"):
        read_preprocessing(tmp_path, image_px=48)
    write_processor(
        tmp_path, "CLIPImageProcessor", size={"shortest_edge": 40}, do_center_crop=True, resample=3,
        crop_size={"height": 32, "width": 32}, image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28],
    )  # fmt: skip
    page = read_preprocessing(tmp_path, image_px=32)
    assert (page.resize, page.resize_px, page.filter) == ("crop", 40, "bicubic")
    np.testing.assert_allclose(page.mean, [122.4, 117.3, 104.55])
    assert check_preprocessing(tmp_path, page) < 1e-5
    write_processor(
        tmp_path, "CLIPImageProcessor", size=32, do_center_crop=False, do_convert_rgb=True, resample=0
    )
    with pytest.raises(CheckpointError, match="resample 0"):
        read_preprocessing(tmp_path, image_px=32)
    with pytest.raises(CheckpointError, match="is missing"):
        read_preprocessing(tmp_path / "nowhere", image_px=32)
