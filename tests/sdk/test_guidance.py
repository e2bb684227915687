"""Guidance against the formula written out: plain numpy, one run of the decoder for each branch and token."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tellapart import Captioner, DecodeOptions, RuntimeOptions, UsageError, WorkerCaptioner
from tellapart.cli import main
from tellapart.contrast import sharpen
from tellapart.decode import log_softmax
from tellapart.errors import ClosedError, ShapeError
from tellapart.guidance import FLOOR, guided_cache
from tellapart.types import Caption

Images = dict[str, np.ndarray]


@pytest.fixture
def captioner(tiny_bundle: Path) -> Iterator[Captioner]:
    with Captioner.open(tiny_bundle) as opened:
        yield opened


class Branch:
    """One picture's decoder, step by step, with nothing of the SDK but the graphs."""

    def __init__(self, captioner: Captioner, pixels: np.ndarray) -> None:
        self.session = captioner._engine.decoder().session
        self.cross = captioner.look(pixels).cross_kv

    def chances(self, ids: list[int]) -> np.ndarray:
        """Natural-log chances after some ids, float64."""
        past = np.zeros((*self.cross.shape[:3], 0, self.cross.shape[4]), np.float32)
        for token in ids:
            answer = self.session.run({"ids": np.array([[token]]), "past_kv": past, "cross_kv": self.cross})
            past = answer["present_kv"]
        logits = answer["logits"][0].astype(np.float64)
        return np.asarray(logits - np.log(np.exp(logits).sum()))


def guided(captioner: Captioner, pixels: np.ndarray, guidance: float) -> tuple[list[int], float]:
    """Greedy ids, and the mean of the image's own log-probabilities."""
    tokenizer = captioner._engine.tokenizer
    side = captioner.bundle.manifest.preprocessing.image_px
    own, null = Branch(captioner, pixels), Branch(captioner, np.full((side, side, 3), 127, np.uint8))
    ids = [tokenizer.start_id]
    logprobs = []
    for _ in range(captioner.bundle.manifest.decoding.max_new_tokens + 1):
        c, u = own.chances(ids), null.chances(ids)
        scores = u + guidance * (c - u)
        allowed = np.ones(len(c), bool)
        allowed[[tokenizer.pad_id, tokenizer.unknown_id, tokenizer.start_id]] = False
        scores[~allowed] = -np.inf
        if guidance > 1:
            scores[c < c[allowed].max() + math.log(FLOOR)] = -np.inf
        token = int(scores.argmax())
        logprobs.append(c[token])
        if token == tokenizer.end_id:
            break
        ids.append(token)
    return ids[1:], float(np.mean(logprobs))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1.5, 3.0, 8.0])
def test_greedy_words_are_those_of_the_formula(
    captioner: Captioner, toy_images: Images, guidance: float
) -> None:
    options = DecodeOptions(beams=1, guidance=guidance, confidence=False)
    for pixels in toy_images.values():
        caption = captioner.caption(pixels, options=options)
        ids, mean_logprob = guided(captioner, pixels, guidance)
        assert list(caption.token_ids) == ids
        assert caption.mean_logprob == pytest.approx(mean_logprob, abs=1e-5)


def test_the_embedded_model_is_guided_as_the_formula_says() -> None:
    photo = np.asarray(Image.open(Path(__file__).parents[2] / "samples" / "photos" / "astronaut.jpg"))
    with Captioner.open() as captioner:
        options = DecodeOptions(beams=1, rerank=0.0, guidance=2.0, confidence=False)
        caption = captioner.caption(photo, options=options)
        assert list(caption.token_ids) == guided(captioner, photo, 2.0)[0]
        plain = captioner.caption(photo, options=DecodeOptions(beams=1, rerank=0.0, confidence=False))
        assert caption.mean_logprob < plain.mean_logprob


rows = hnp.arrays(np.float32, (2, 6), elements=st.floats(-8, 8, width=32))


@settings(max_examples=60, deadline=None)
@given(own=rows, null=rows, guidance=st.floats(0, 6), banned=st.integers(0, 5))
def test_branches_are_joined_and_made_chances_again(
    own: np.ndarray, null: np.ndarray, guidance: float, banned: int
) -> None:
    c, u = log_softmax(own), log_softmax(null)
    wanted = np.exp(u.astype(np.float64) + guidance * (c.astype(np.float64) - u))
    wanted[:, banned] = 0
    wanted /= wanted.sum(axis=1, keepdims=True)
    c[:, banned] = -np.inf
    found = sharpen(c, u, weight=guidance - 1, floor=0)
    assert np.exp(found) == pytest.approx(wanted, abs=1e-4)


def numbers(caption: Caption) -> list[tuple[tuple[int, ...], float]]:
    return [(entry.token_ids, entry.mean_logprob) for entry in (caption, *caption.alternatives)]


@pytest.mark.parametrize(
    "fields",
    [
        {"beams": 1},
        {"beams": 4, "n_best": 3},
        {"beams": 4, "n_best": 2, "rerank": 2.0},
        {"temperature": 1.5, "seed": 3, "n_best": 3},
        {"temperature": 0.7, "top_p": 0.8, "seed": 4, "min_new_tokens": 4},
        {"beams": 3, "no_repeat_ngram": 2, "length_penalty": 0.3},
    ],
)
def test_an_image_has_the_same_captions_in_a_batch_and_alone(
    captioner: Captioner, toy_images: Images, fields: dict[str, Any]
) -> None:
    options = DecodeOptions(guidance=2.5, **fields)
    alone = [numbers(captioner.caption(image, options=options)) for image in toy_images.values()]
    for size, workers in ((3, 1), (8, 1), (1, 3)):
        several = captioner.caption_many(
            toy_images.values(), batch_size=size, workers=workers, options=options
        )
        assert [numbers(caption) for caption in several] == alone
    plain = [captioner.caption(image, options=DecodeOptions(**fields)) for image in toy_images.values()]
    assert [numbers(caption) for caption in plain] != alone


def test_the_null_image_alone_says_the_same_of_every_picture(
    captioner: Captioner, toy_images: Images
) -> None:
    options = DecodeOptions(beams=4, guidance=0.0, confidence=False)
    said = {captioner.caption(image, options=options).token_ids for image in toy_images.values()}
    assert len(said) == 1


def test_without_guidance_nobody_looks_at_nothing(captioner: Captioner, toy_images: Images) -> None:
    plain = captioner.caption(toy_images["red"])
    same = captioner.caption(toy_images["red"], options=DecodeOptions(guidance=1))
    assert numbers(plain) == numbers(same)
    here = captioner._engine._here()
    assert here.null_kv is None
    captioner.caption(toy_images["red"], options=DecodeOptions(guidance=1.01))
    assert here.null_kv is not None


def test_the_null_image_is_looked_at_once_and_let_go_with_the_graphs(
    tiny_bundle: Path, toy_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The smallest allowed picture: what the runtime allows for the caller's images is not asked of this one.
    runtime = RuntimeOptions(idle_unload_s=0.3, max_image_megapixels=0.0011)
    options = DecodeOptions(guidance=2.0)
    with Captioner.open(tiny_bundle, runtime=runtime) as captioner:
        engine = captioner._engine
        vision = engine.vision()
        looks = []
        look = vision.look
        monkeypatch.setattr(vision, "look", lambda pixels: looks.append(pixels) or look(pixels))
        first = captioner.caption(toy_images["red"], options=options)
        assert captioner.caption(toy_images["red"], options=options).token_ids == first.token_ids
        assert first.elapsed_ms["load"] > 0
        assert len(looks) == 3
        assert (looks[1] == 127).all()
        here = engine._here()
        for _ in range(100):
            if here.null_kv is None:
                break
            time.sleep(0.05)
        assert here.null_kv is None
        assert captioner.caption(toy_images["red"], options=options).token_ids == first.token_ids
    assert here.null_kv is None
    with pytest.raises(ClosedError):
        engine.null_kv()


def test_a_null_image_of_another_bundle_is_refused() -> None:
    with pytest.raises(ShapeError, match="null image"):
        guided_cache(np.zeros((2, 3, 1, 4, 2), np.float32), np.zeros((2, 1, 1, 5, 2), np.float32))


@pytest.mark.parametrize("guidance", [-0.1, math.nan, math.inf, "2", True, None])
def test_what_is_no_guidance_is_refused(guidance: Any) -> None:
    with pytest.raises(UsageError, match="guidance must be a finite number"):
        DecodeOptions(guidance=guidance)


def test_pieces_of_a_stream_are_the_greedy_caption(captioner: Captioner, toy_images: Images) -> None:
    options = DecodeOptions(beams=1, guidance=3.0)
    for image in toy_images.values():
        streamed = "".join(captioner.stream(image, options=DecodeOptions(guidance=3.0)))
        assert streamed == captioner.caption(image, options=options).text


def test_a_deadline_counts_from_the_first_step(captioner: Captioner, toy_images: Images) -> None:
    options = DecodeOptions(guidance=2.0, deadline_ms=1e-6, beams=1)
    caption = captioner.caption(toy_images["red"], options=options)
    assert caption.truncated
    assert len(caption.token_ids) == 1


def test_bags_are_guided_image_by_image_and_contrast_refuses(
    captioner: Captioner, toy_images: Images
) -> None:
    images = list(toy_images.values())
    options = DecodeOptions(beams=4, guidance=2.0)
    plain = captioner.bag(images, mode="plain", options=options)
    assert [caption.token_ids for caption in plain.captions] == [
        captioner.caption(image, options=options).token_ids for image in images
    ]
    chosen = captioner.bag(images, mode="rerank", options=options)
    assert all(len(caption.alternatives) == 3 for caption in chosen.captions)
    with pytest.raises(UsageError, match=r"guidance=2 by none at all"):
        captioner.bag(images, mode="contrast", options=options)


def test_a_worker_and_the_command_line_pass_it_on(
    captioner: Captioner, tiny_bundle: Path, toy_images: Images, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(toy_images["yellow_green"]).save(path)
    options = DecodeOptions(beams=2, guidance=3.0)
    wanted = captioner.caption(path, options=options)
    assert wanted.text != captioner.caption(path, options=DecodeOptions(beams=2)).text
    with WorkerCaptioner.open(tiny_bundle, timeout_s=60) as worker:
        assert numbers(worker.caption(path, options=options)) == numbers(wanted)
    model = ["--model", str(tiny_bundle), "--beams", "2", "--json"]
    assert main(["caption", str(path), *model, "--guidance", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["caption"] == wanted.text
    assert main(["caption", str(path), *model, "--guidance", "-1"]) == 2
    assert "guidance must be a finite number at least 0" in capsys.readouterr().err
