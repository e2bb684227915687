"""What is particular about a network that is asked: the prompt, its template, tiles, both its names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("transformers")

from tellapart import Captioner, DecodeOptions  # noqa: E402
from tellapart.bundle import open_bundle  # noqa: E402
from tellapart.cli import main  # noqa: E402
from tellapart.errors import CheckpointError, ParityError, UsageError  # noqa: E402
from tellapart_export.build import ExportOptions, export_bundle  # noqa: E402
from tellapart_export.families import open_checkpoint  # noqa: E402
from tellapart_export.families.smolvlm import PROMPT  # noqa: E402
from toy_families import make_clip, make_smolvlm  # noqa: E402

pytestmark = pytest.mark.train
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
PHOTOS = sorted((Path(__file__).parents[2] / "samples" / "photos").glob("*.*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_smolvlm(tmp_path_factory.mktemp("smolvlm") / "checkpoint")


def change(name: str, **values: Any) -> Callable[[Path], None]:
    """A change of one of a checkpoint's pages; a value that is a dict goes into the section of that name."""

    def apply(folder: Path) -> None:
        page = json.loads((folder / name).read_text(encoding="utf-8"))
        for key, value in values.items():
            page[key] = {**page.get(key, {}), **value} if isinstance(value, dict) else value
        (folder / name).write_text(json.dumps(page), encoding="utf-8")

    return apply


@pytest.mark.long
def test_another_prompt_is_another_answer(whole: Path, tmp_path: Path) -> None:
    arguments = ["export", str(whole), "--out", str(tmp_path / "asked"), "--prompt", "What is in the road?"]
    assert main(arguments) == 0
    export_bundle(whole, tmp_path / "plain")
    said: list[Any] = []
    lengths: list[int] = []
    for name, prompt in (("plain", PROMPT), ("asked", "What is in the road?")):
        with Captioner.open(tmp_path / name) as captioner:
            assert captioner.bundle.manifest.source["prompt"] == prompt
            found = captioner.caption_many(PHOTOS, options=DecodeOptions(beams=1))
            said.append([caption.token_ids for caption in found])
            lengths.append(captioner.look(PHOTOS[0]).cross_kv.shape[3])
    assert said[0] != said[1]
    assert lengths[0] > lengths[1]  # the other question is shorter


@pytest.mark.long
def test_idefics3_is_read_alike(tmp_path: Path) -> None:
    folder = make_smolvlm(tmp_path / "checkpoint", "Idefics3")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "idefics3"
    manifest = export_bundle(folder, tmp_path / "out")
    assert manifest.source["architecture"] == "idefics3"
    assert (manifest.preprocessing.resize, manifest.preprocessing.resize_px) == ("squash", 64)
    assert manifest.parity["greedy_tokens_equal"] == 8
    assert manifest.parity["max_logit_error"] < 1e-3


def test_the_start_mark_and_a_place_for_a_picture_are_never_said(whole: Path) -> None:
    subject = open_checkpoint(whole)
    page = subject.vocabulary
    assert (page.start, page.unknown, page.end) == ("<|im_start|>", "<image>", "<end_of_utterance>")
    assert page.kind == "digit_bpe"
    decoder = subject.graphs[1].module
    past, cross = torch.zeros(6, 1, 2, 0, 8), torch.randn(subject.graphs[1].example[2][:, :1].shape)
    pieces = subject.files["vocab.txt"].decode().split("\n")
    with torch.no_grad():
        rows = [decoder(torch.tensor([[pieces.index(sign)]]), past, cross)[0] for sign in (page.start, ":")]
    assert torch.equal(*rows)  # the prompt ends in a colon, which a caption may hold


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "chat_template.json").unlink(), "no chat template"),
        (change("chat_template.json", chat_template="{% for %}"), "cannot be rendered"),
        (change("preprocessor_config.json", max_image_size={"longest_edge": 48}), "built for 32 x 32"),
        (change("preprocessor_config.json", size={"longest_edge": 16}), "longest_edge from 32"),
        (change("preprocessor_config.json", do_resize=False), "as large as they are"),
        (change("preprocessor_config.json", resample=0), "resample 0"),
        (change("preprocessor_config.json", do_normalize=False), "unscaled"),
        (change("config.json", text_config={"model_type": "qwen2"}), "'qwen2', and of this family only"),
        (change("config.json", text_config={"rope_scaling": DYNAMIC}), "kind 'dynamic'"),
        (change("config.json", image_token_id=7), "belongs to another checkpoint"),
    ],
)  # fmt: skip
def test_what_cannot_be_described_is_refused(
    spoil: Callable[[Path], None], words: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole, folder)
    spoil(folder)
    with pytest.raises((CheckpointError, ParityError), match=words):
        export_bundle(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.long
def test_prompts_that_cannot_be(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 places for a picture and needs one"):
        open_checkpoint(whole, "What is in <image>?")
    with pytest.raises(UsageError, match="has room for 160; ask shorter"):
        open_checkpoint(whole, "why? " * 99)
    clip = make_clip(tmp_path / "clip")
    with pytest.raises(UsageError, match="is of the family 'clip'; leave it out"):
        export_bundle(clip, tmp_path / "out", ExportOptions(prompt="What is it?"))
    with open_bundle(export_to(whole, tmp_path / "long")) as bundle:
        assert bundle.manifest.decoding.max_new_tokens == 14


def export_to(checkpoint: Path, out: Path) -> Path:
    export_bundle(checkpoint, out)
    return out


def test_the_template_of_a_newer_checkpoint_is_a_file_of_its_own(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole, folder)
    template = json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    wanted = open_checkpoint(whole).graphs[0].spec
    assert open_checkpoint(folder).graphs[0].spec == wanted
    # What a template says is rendered and no more.
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be rendered"):
        open_checkpoint(folder)
