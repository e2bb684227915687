"""MobileCLIP through open_clip, where that library is installed, and what is said where it is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from PIL import Image  # noqa: E402

from tellapart import Retriever  # noqa: E402
from tellapart.errors import CheckpointError, MissingExtraError  # noqa: E402
from tellapart_export.build import export_bundle  # noqa: E402
from tellapart_export.families import find_family  # noqa: E402
from toy_families import make_mobileclip  # noqa: E402

pytestmark = pytest.mark.train
PHOTOS = sorted((Path(__file__).parents[2] / "samples" / "photos").glob("*.*"))
PAGE = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open_clip", reason="the extra openclip is not installed", exc_type=ImportError)
    return make_mobileclip(tmp_path_factory.mktemp("open_clip") / "checkpoint")


def test_mobileclip_embeds_as_open_clip_does(whole: Path, tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import load_file
    from transformers import CLIPTokenizerFast

    manifest = export_bundle(whole, tmp_path / "out")
    assert (manifest.kind, manifest.source["family"]) == (("retriever",), "open_clip")
    assert "open_clip_config.json" in manifest.source["checkpoint_files"]
    towers = json.loads((whole / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    del towers["custom_text"]
    model = open_clip.CustomTextCLIP(**towers).eval()
    model.load_state_dict(load_file(whole / "open_clip_model.safetensors"))
    words = CLIPTokenizerFast.from_pretrained(whole)
    texts = ["The dog runs!", "", "a hat in the rain at the"]
    ids = torch.zeros(len(texts), 16, dtype=torch.int64)  # filled up with 0, as open_clip's tokenizer does
    for row, text in enumerate(texts):
        found = words(text, truncation=True, max_length=16)["input_ids"]
        ids[row, : len(found)] = torch.tensor(found)
    squares = [Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR) for path in PHOTOS]
    pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares]))
    with torch.no_grad():
        images = model.encode_image(pixels.permute(0, 3, 1, 2).float() / 255, normalize=True).numpy()
        rows = model.encode_text(ids, normalize=True).numpy()
    with Retriever.open(tmp_path / "out") as retriever:
        for found, wanted in (
            (retriever.embed_images([np.asarray(square) for square in squares]), images),
            (retriever.embed_texts(texts), rows),
        ):
            np.testing.assert_allclose(found, wanted, atol=1e-5)
            assert np.ptp(found, axis=0).max() > 1e-3  # else equal rows would say little


def test_other_weights_are_refused(whole: Path, tmp_path: Path) -> None:
    page = json.loads((whole / "open_clip_config.json").read_text(encoding="utf-8"))
    page["model_cfg"]["embed_dim"] = 25
    (tmp_path / "open_clip_config.json").write_text(json.dumps(page), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"open_clip_model\.safetensors is missing"):
        export_bundle(tmp_path, tmp_path / "out")
    (tmp_path / "open_clip_model.safetensors").symlink_to(whole / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be loaded by open_clip.*other weights"):
        export_bundle(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps(PAGE), encoding="utf-8")
    assert find_family(tmp_path) == "open_clip"
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"pip install .tellapart\[openclip\]"):
        export_bundle(tmp_path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["open_clip_config.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "describes no pair of towers"),
        ("{}", "describes no pair of towers"),
        (
            json.dumps({"model_cfg": {"vision_cfg": {}, "text_cfg": {"hf_model_name": "roberta-base"}}}),
            "hf_model_name asks for a tower that is not",
        ),
        (json.dumps({"model_cfg": {**PAGE["model_cfg"], "multimodal_cfg": {}}}), "multimodal_cfg asks"),
    ],
)
def test_what_open_clip_does_not_hold_itself_is_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        export_bundle(tmp_path, tmp_path / "out")
