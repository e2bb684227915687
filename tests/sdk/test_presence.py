"""Presence against logistic chances written out by hand, its file against its layout, and a bag's choice."""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import Captioner
from tellapart.bag import judge_bag
from tellapart.bundle import open_bundle, staged_bundle, write_bundle
from tellapart.errors import BundleError, ShapeError
from tellapart.presence import PRESENCE_NAME, UNKNOWN, Presence
from tellapart.types import Caption

ROWS = np.array([[1, 0], [0.6, 0.8]], np.float32)


def toy() -> Presence:
    """Pieces 4 and 7 over embeddings of width 2."""
    bias, weights = np.array([0.5, -2], np.float32), np.array([[1, 0], [-3, 4]], np.float32)
    return Presence(np.array([4, 7]), bias, weights)


def said(*ids: int, text: str = "") -> Caption:
    return Caption(text=text, token_ids=ids, mean_logprob=-1.0, truncated=False, elapsed_ms={})


def log_chance(logit: float) -> float:
    return math.log(1 / (1 + math.exp(-logit)))


def test_a_caption_is_borne_out_by_the_chances_of_its_different_pieces() -> None:
    found = toy().borne_out([said(4, 7, 4), said(7, 9), said()], ROWS)
    four = [log_chance(0.5 + 1), log_chance(0.5 + 0.6)]
    seven = [log_chance(-2 - 3), log_chance(-2 - 1.8 + 3.2)]
    by_hand = [[a + b for a, b in zip(four, seven, strict=True)], [b + UNKNOWN for b in seven], [0, 0]]
    assert found == pytest.approx(np.array(by_hand), abs=1e-5)


def test_logits_too_large_for_a_float_are_still_chances() -> None:
    presence = Presence(np.array([4]), np.array([-2000], np.float32), np.array([[4000, 0]], np.float32))
    assert presence.log_chances(np.array([[1, 0], [0, 1]], np.float32)).tolist() == [[0], [-2000]]


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(ShapeError, match="width 2"):
        toy().borne_out([said(4)], np.ones((2, 3), np.float32))


def test_the_file_is_as_the_page_says() -> None:
    content = toy().to_bytes()
    assert struct.unpack_from("<II", content) == (2, 2)
    assert struct.unpack_from("<Iffbb", content, 8 + 14) == (7, -2, pytest.approx(4 / 127), -95, 127)
    again = Presence.from_bytes(content, vocabulary_size=8)
    assert again.pieces.tolist() == [4, 7]
    assert again.bias.tolist() == [0.5, -2]
    assert again.weights == pytest.approx(toy().weights, abs=4 / 254 + 1e-6)
    assert again.to_bytes() == content


def with_float(content: bytes, place: int) -> bytes:
    return content[:place] + struct.pack("<f", math.nan) + content[place + 4 :]


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        (lambda content: content[:7], 8, "head"),
        (lambda content: content[:-1], 8, "expected 36"),
        (lambda content: content + b"\0", 8, "expected 36"),
        (lambda content: struct.pack("<II", 0, 2), 8, "of 0 pieces"),
        (lambda content: struct.pack("<II", 2**32 - 1, 2**32 - 1) + content[8:], 8, "expected"),
        (lambda content: content, 7, "below 7"),
        (lambda content: content[:8] + content[22:] + content[8:22], 8, "rising"),
        (lambda content: with_float(content, 12), 8, "finite"),
        (lambda content: with_float(content, 16), 8, "finite"),
    ],
)
def test_a_damaged_file_is_refused(change: Callable[[bytes], bytes], size: int, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Presence.from_bytes(change(toy().to_bytes()), vocabulary_size=size, bundle="mine")


def chosen(presence: Presence | None) -> list[str]:
    """Of two candidates of the first of two images, which the retriever and the captioner like as much."""
    where = {"a dog": 0, "a hat": 0, "else": 1}

    def embed(texts: list[str]) -> np.ndarray:
        return np.eye(2, dtype=np.float32)[[where[text] for text in texts]]

    groups = [[said(7, text="a hat"), said(4, text="a dog")], [said(9, text="else")]]
    result = judge_bag(groups, np.eye(2, dtype=np.float32), embed, mode="contrast", presence=presence)
    return [caption.text for caption in result.captions]


def test_of_equally_likely_and_telling_captions_the_one_that_is_there_is_taken() -> None:
    assert chosen(None) == ["a hat", "else"]
    assert chosen(toy()) == ["a dog", "else"]


def test_what_is_there_tells_more_where_it_is_not_in_the_other_image() -> None:
    # Equally likely to be said of the first image; the second has the hat too.
    weights = np.array([[1, -4], [1, 1]], np.float32)
    assert chosen(Presence(np.array([4, 7]), np.zeros(2, np.float32), weights)) == ["a dog", "else"]


def test_a_bag_in_contrast_heeds_the_file_of_its_bundle(
    tiny_bundle: Path, toy_images: dict[str, Any], tmp_path: Path
) -> None:
    images = [toy_images["red"], toy_images["blue"], toy_images["red_blue"]]
    with Captioner.open(tiny_bundle) as captioner:
        plain = captioner.bag(images, mode="plain")
        before = captioner.bag(images, mode="contrast")
        size = captioner._engine.tokenizer.vocabulary_size
        width = captioner.look(images[0]).embedding.shape[1]
        assert captioner._engine.presence() is None
    # Only pieces that the first caption lacks are to be expected, of every image.
    unsaid = np.array([piece not in before.captions[0].token_ids for piece in range(size)])
    bias = np.where(unsaid, 30, -30).astype(np.float32)
    presence = Presence(np.arange(size), bias, np.zeros((size, width), np.float32))
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with open_bundle(tiny_bundle) as source, staged_bundle(bundle, overwrite=True) as scratch:
        files: dict[str, bytes | Path] = {path: source.read_bytes(path) for path in source.manifest.files}
        write_bundle(scratch, source.manifest, {**files, PRESENCE_NAME: presence.to_bytes()})
    with Captioner.open(bundle) as captioner:
        after = captioner.bag(images, mode="contrast")
        assert captioner.bag(images, mode="plain").captions[0].text == plain.captions[0].text
    pieces = set(before.captions[0].token_ids)
    assert len(pieces & set(after.captions[0].token_ids)) < len(pieces)
    # Shorter ones come in addition.
    assert {item.text for item in (after.captions[0], *after.captions[0].alternatives)} > {
        item.text for item in (before.captions[0], *before.captions[0].alternatives)
    }


def test_a_presence_of_another_bundle_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    foreign = replace_pieces(toy(), [4, 9_999])
    with open_bundle(tiny_bundle) as source, staged_bundle(bundle, overwrite=True) as scratch:
        files: dict[str, bytes | Path] = {path: source.read_bytes(path) for path in source.manifest.files}
        write_bundle(scratch, source.manifest, {**files, PRESENCE_NAME: foreign.to_bytes()})
    with Captioner.open(bundle) as captioner, pytest.raises(BundleError, match="below"):
        captioner.bag([np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8)], mode="contrast")


def replace_pieces(presence: Presence, pieces: list[int]) -> Presence:
    return Presence(np.array(pieces), presence.bias, presence.weights)
