"""HolisticCap with an image-text model on this machine: here a SmolVLM and an Idefics3 made of noise."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faulty_endpoint import human_captions, write_captions
from tellapart.cli import main
from tellapart.errors import BackendError, CheckpointError
from toy_families import make_smolvlm

pytest.importorskip("spacy")
pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from tellapart_training.boost import chat_run, local_chat  # noqa: E402
from tellapart_training.boost.chat import Answer, Decoding, Fault  # noqa: E402
from tellapart_training.boost.local_chat import LocalChat, Request  # noqa: E402
from tellapart_training.boost.local_model import LocalModel, open_model  # noqa: E402
from tellapart_training.boost.prompt import load_prompt  # noqa: E402
from tellapart_training.boost.vision import data_uri, look_messages  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.usefixtures("block_network")]

HUMANS = ["A brown dog is running on the grass .", "A dog with a ball is running ."]
SEEN = "- The dog wears a red collar.\n- A fence stands behind the dog near the grass.\n"
FUSED = "A brown dog with a red collar and a ball is running on the grass near a fence."


def save_eyes(folder: Path, kind: str = "SmolVLM") -> Path:
    """The toy of the export, with what it needs for chats: its processor, its marks, room for a prompt."""
    make_smolvlm(folder, kind)
    # Of a photo: side 32, patches of 8, four of them to a token.
    write(folder / "processor_config.json", {"processor_class": f"{kind}Processor", "image_seq_len": 4})
    marks = {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **marks})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["text_config"]["max_position_embeddings"] = 4096
    write(folder / "config.json", config)
    return folder


def write(path: Path, page: dict[str, Any]) -> None:
    path.write_text(json.dumps(page), encoding="utf-8")


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy SmolVLM."""
    return save_eyes(tmp_path_factory.mktemp("eyes"))


def photo(width: int, height: int) -> Any:
    """A photo of noise."""
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


def asked(width: int, height: int, question: str = "A dog?") -> list[dict[str, Any]]:
    """The messages that show a photo of noise, as an endpoint is sent them."""
    prompt = dataclasses.replace(load_prompt("describe-1"), system="Say.", user=question)
    return look_messages(prompt, data_uri(photo(width, height), 768))


def command(folder: Path, *more: str) -> list[str]:
    """Arguments of a run over one photo with captions."""
    (folder / "photos").mkdir(exist_ok=True)
    Image.fromarray(photo(120, 90)).save(folder / "photos" / "a.jpg")
    write(folder / "captions.jsonl", {"image": "a.jpg", "split": "train", "captions": HUMANS})
    return [
        "boost", "--captions", str(folder / "captions.jsonl"), "--out", str(folder / "out.jsonl"), "--json",
        "--images", str(folder / "photos"), "--no-check", "similarity", "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["SmolVLM", "Idefics3"])
def test_answers_are_those_of_transformers_whatever_the_batch(tmp_path: Path, eyes: Path, kind: str) -> None:
    folder = eyes if kind == "SmolVLM" else save_eyes(tmp_path, kind)
    model = open_model(str(folder), device="cpu", sees=True)
    chat, decoding = LocalChat(model, batch=4), Decoding(max_tokens=6)
    questions = [asked(120, 90), asked(40, 80, "A cat, or two cats, or a dog?"), asked(90, 90)]
    together = chat._answer(
        [
            Request(chat.render(one), decoding, tuple(local_chat._photos(one[1]["content"])))
            for one in questions
        ]
    )
    alone = [chat.complete(one, decoding) for one in questions]
    assert together == alone
    assert len({answer.text for answer in alone}) == 3
    # The step by hand, from what transformers' own way from messages to numbers gives.
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Say."}]},
        {"role": "user", "content": [
            {"type": "image", "image": local_chat._opened(local_chat._photos(questions[0][1]["content"])[0])},
            {"type": "text", "text": "A dog?"},
        ]},
    ]  # fmt: skip
    given = model.processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert alone[0].input_tokens == given["input_ids"].shape[1]
    own, pixels = given["input_ids"], {name: given[name] for name in given if name.startswith("pixel")}
    for _ in range(6):
        following = model.network(input_ids=own, **pixels).logits[:, -1].argmax(dim=-1, keepdim=True)
        own = torch.cat([own, following], dim=1)
        if following.item() in model.ends:
            break
    said = model.tokenizer.decode(own[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert alone[0].text == said.strip()


class Scripted:
    """In place of a network: one answer where it is shown pixels, another where it reads alone."""

    def __init__(self, model: LocalModel) -> None:
        self.dtype, self.device = model.network.dtype, model.network.device
        self.config = SimpleNamespace(max_position_embeddings=4096)
        self.shown: list[tuple[int, ...]] = []
        self.read: list[str] = []
        self._tokenizer = model.tokenizer

    def generate(self, input_ids: Any, pixel_values: Any = None, **_: Any) -> Any:
        """Rows of the question, the answer, an end mark."""
        self.read += self._tokenizer.batch_decode(input_ids)
        if pixel_values is not None:
            self.shown.append(tuple(pixel_values.shape))
        text = FUSED if pixel_values is None else SEEN
        ids = [*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id]
        return torch.cat([input_ids, torch.tensor([ids] * len(input_ids))], dim=1)


def test_one_model_looks_and_writes_and_is_recorded_and_asked_once(
    tmp_path: Path, eyes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[Scripted] = []

    def open_scripted(*given: Any, **more: Any) -> LocalModel:
        model = open_model(*given, **more)
        opened.append(Scripted(model))
        return dataclasses.replace(model, network=opened[-1])

    monkeypatch.setattr(chat_run, "open_model", open_scripted)
    arguments = command(tmp_path, "--generator", "local", "--local-model", str(eyes), "--vision", "local")
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["generators"] == {"local": 1}
    whole = (tmp_path / "out.jsonl").read_text("utf-8")
    line = json.loads(whole)
    assert line["captions"] == [FUSED]
    statements = ["The dog wears a red collar.", "A fence stands behind the dog near the grass."]
    assert line["boost"]["vision"] == {"describe-1": statements}
    assert line["boost"]["prompt"]["name"] == "fuse-plain-1"
    looked = line["boost"]["looked"]
    assert (looked["model"], looked["prompt"]["name"]) == (str(eyes), "describe-1")
    assert looked["source"] == line["boost"]["source"]
    assert looked["decoding"]["max_tokens"] == 300
    # One model for both, opened once; the photo as four pieces and the whole.
    assert [one.shown for one in opened] == [[(1, 5, 3, 32, 32)]]
    look, fuse = opened[0].read
    assert "What is visible here?" in look
    assert json.dumps(statements) in fuse
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)["local"]
    assert (report["requests"], report["from journal"]) == (0, 2)
    assert (tmp_path / "out.jsonl").read_text("utf-8") == whole


def test_noise_that_another_model_sees_is_counted_and_the_human_captions_stay(
    tmp_path: Path, eyes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--max-tokens", "20", "--tries", "1")
    writer = str(shutil.copytree(eyes, tmp_path / "writer"))
    arguments = command(tmp_path, "--generator", "local", "--local-model", writer, "--vision", "local")
    assert main([*arguments, "--vision-model", str(eyes), *more]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["generators"] == {"extractive (fallback)": 1}
    assert report["local"]["answers"] == 2
    assert report["rejected"]["description: of another photo"] == 1
    line = json.loads((tmp_path / "out.jsonl").read_text("utf-8"))
    assert set(line["captions"][0].rstrip(".").lower().split()) <= set(" ".join(HUMANS).lower().split())
    header = json.loads((tmp_path / "out.jsonl.journal").read_text("utf-8").splitlines()[0])["run"]
    assert header["vision_model"] == str(eyes)
    assert header["vision_source"]["sha256"]


def test_a_model_that_sees_writes_from_captions_alone_too(
    tmp_path: Path, eyes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_captions(tmp_path / "captions.jsonl", 1)
    arguments = [
        "boost",
        "--captions",
        str(tmp_path / "captions.jsonl"),
        "--out",
        str(tmp_path / "out.jsonl"),
    ]
    more = ["--generator", "local", "--local-model", str(eyes), "--device", "cpu", "--max-tokens", "8"]
    assert main([*arguments, "--json", *more]) == 0
    assert json.loads(capsys.readouterr().out)["local"]["answers"] >= 1
    assert len(human_captions(0)) > 1


def test_a_mark_of_a_photo_inside_a_caption_shows_none(eyes: Path) -> None:
    chat = LocalChat(open_model(str(eyes), device="cpu"), batch=1)
    turns = [
        {"role": "system", "content": "Merge."},
        {"role": "user", "content": "A dog <image> <|im_end|>."},
    ]
    assert chat.render(turns).count("<image>") == 0
    assert isinstance(chat.complete(turns, Decoding(max_tokens=2)), Answer)


def test_a_photo_that_the_processor_refuses_costs_its_neighbours_nothing(eyes: Path) -> None:
    model = open_model(str(eyes), device="cpu", sees=True)

    class Picky:
        def __init__(self) -> None:
            self.chat_template = model.processor.chat_template

        def __call__(self, **given: Any) -> Any:
            if any(one.size == (40, 80) for photos in given["images"] for one in photos):
                raise ValueError("too thin")
            return model.processor(**given)

    chat = LocalChat(dataclasses.replace(model, processor=Picky()), batch=4)
    found = chat._answer(
        [
            Request(chat.render(one), Decoding(max_tokens=2), tuple(local_chat._photos(one[1]["content"])))
            for one in (asked(120, 90), asked(40, 80), asked(90, 90))
        ]
    )
    assert [type(one) for one in found] == [Answer, Fault, Answer]
    assert isinstance(found[1], Fault)
    assert (found[1].kind, found[1].again) == ("photo refused", False)


def test_random_numbers_of_a_look_hang_on_its_photo() -> None:
    seeds = {local_chat._seed(Request("What?", Decoding(), photos)) for photos in ((), (b"a",), (b"b",))}
    assert len(seeds) == 3


def _reads_alone(folder: Path, eyes: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes)).save_pretrained(folder)


def _no_processor(folder: Path, eyes: Path) -> None:
    shutil.copytree(eyes, folder)
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").unlink()


def _no_template(folder: Path, eyes: Path) -> None:
    shutil.copytree(eyes, folder)
    (folder / "chat_template.json").unlink()


def _needs_a_package(folder: Path, eyes: Path) -> None:
    # A video processor, which transformers has with torchvision alone.
    from transformers import Qwen2VLConfig

    shutil.copytree(eyes, folder)
    config = Qwen2VLConfig()
    config.architectures = ["Qwen2VLForConditionalGeneration"]
    config.save_pretrained(folder)
    (folder / "processor_config.json").unlink()
    write(folder / "preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessor"})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_reads_alone, "reads text alone"), (_no_processor, "has no processor"),
        (_no_template, "no chat template"), (_needs_a_package, "Torchvision"),
    ],
)  # fmt: skip
def test_what_cannot_see_is_said(
    tmp_path: Path, eyes: Path, make: Callable[[Path, Path], None], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make(tmp_path / "model", eyes)
    with pytest.raises(CheckpointError, match=said):
        open_model(str(tmp_path / "model"), sees=True)
    arguments = command(tmp_path, "--generator", "endpoint", "--chat-model", "toy", "--vision", "local")
    assert main([*arguments, "--vision-model", str(tmp_path / "model")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl.journal").exists()


def test_a_photo_is_never_dropped_in_silence(eyes: Path) -> None:
    model = open_model(str(eyes), device="cpu")
    chat = LocalChat(dataclasses.replace(model, processor=None), batch=1)
    with pytest.raises(BackendError, match="reads text alone"):
        chat.complete(asked(90, 90), Decoding())


@pytest.mark.parametrize(
    "more",
    [
        ["--vision", "local"],
        ["--generator", "endpoint", "--chat-model", "x", "--vision", "local"],
        [
            "--generator",
            "local",
            "--local-model",
            "x",
            "--vision",
            "local",
            "endpoint",
            "--vision-model",
            "x",
        ],
        ["--generator", "local", "--local-model", "x", "--vision", "local=0.5"],
    ],
)
def test_options_that_do_not_go_together_end_with_status_2(tmp_path: Path, more: list[str]) -> None:
    assert main(command(tmp_path, *more)) == 2
    assert not list(tmp_path.glob("out*"))
