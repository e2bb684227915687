"""The retriever's word in which of an image's captions comes first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import BundleError, Captioner, DecodeOptions, UsageError
from tellapart.bundle import open_bundle
from tellapart.manifest import parse_manifest

Images = dict[str, np.ndarray]
NAMES = ("red", "green", "red_blue", "blue")


@pytest.fixture
def captioner(tiny_bundle: Path) -> Iterator[Captioner]:
    with Captioner.open(tiny_bundle) as opened:
        yield opened


def test_the_largest_sum_of_likelihood_and_fit_comes_first(captioner: Captioner, toy_images: Images) -> None:
    changed = 0
    for name in NAMES:
        image = toy_images[name]
        plain = captioner.caption(image, options=DecodeOptions(beams=6, n_best=6, rerank=0))
        found = [plain, *plain.alternatives]
        row = captioner.retriever.embed_images([image])[0]
        texts = captioner.retriever.embed_texts([caption.text for caption in found])
        for weight in (0.5, 5.0, 500.0):
            sums = [
                caption.mean_logprob + weight * float(text @ row)
                for caption, text in zip(found, texts, strict=True)
            ]
            expected = [found[place].text for place in np.argsort(-np.array(sums), kind="stable")]
            best = captioner.caption(image, options=DecodeOptions(beams=6, n_best=3, rerank=weight))
            assert [best.text, *(caption.text for caption in best.alternatives)] == expected[:3]
            assert best.elapsed_ms["rerank"] > 0
            changed += expected[0] != plain.text
    assert changed  # otherwise this proves nothing


def test_one_caption_wanted_is_still_chosen_among_all_beams(captioner: Captioner, toy_images: Images) -> None:
    options: Any = {"beams": 6, "rerank": 500.0}
    for name in NAMES:
        several = captioner.caption(toy_images[name], options=DecodeOptions(n_best=6, **options))
        one = captioner.caption(toy_images[name], options=DecodeOptions(**options))
        assert (one.text, one.alternatives) == (several.text, ())


def test_batches_give_the_captions_of_single_images(captioner: Captioner, toy_images: Images) -> None:
    options = DecodeOptions(beams=5, rerank=20.0)
    images = [toy_images[name] for name in NAMES]
    together = [caption.text for caption in captioner.caption_many(images, batch_size=4, options=options)]
    assert together == [captioner.caption(image, options=options).text for image in images]


def test_greedy_captions_leave_nothing_to_choose(captioner: Captioner, toy_images: Images) -> None:
    caption = captioner.caption(toy_images["red"], options=DecodeOptions(beams=1, rerank=500.0))
    assert caption.text == captioner.caption(toy_images["red"], options=DecodeOptions(beams=1)).text
    assert "rerank" not in caption.elapsed_ms


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UsageError, match="rerank"):
        DecodeOptions(rerank=-0.1)


def test_a_bundle_says_its_own_weight_and_options_override_it(
    tiny_bundle: Path, toy_images: Images, tmp_path: Path
) -> None:
    weighted = tmp_path / "weighted"
    shutil.copytree(tiny_bundle, weighted)
    _edit(weighted, decoding={"beams": 6, "rerank": 500.0})
    with open_bundle(weighted) as bundle:
        assert bundle.manifest.decoding.rerank == 500.0
    with Captioner.open(tiny_bundle) as plain, Captioner.open(weighted) as by_bundle:
        for name in NAMES:
            image = toy_images[name]
            asked = plain.caption(image, options=DecodeOptions(beams=6, rerank=500.0))
            assert by_bundle.caption(image).text == asked.text
            unasked = by_bundle.caption(image, options=DecodeOptions(rerank=0.0))
            assert unasked.text == plain.caption(image, options=DecodeOptions(beams=6)).text


def test_a_bundle_without_a_retriever_cannot_weigh(tiny_bundle: Path, tmp_path: Path) -> None:
    page = json.loads((tiny_bundle / "tellapart.json").read_text())
    page["kind"] = ["captioner"]
    page["decoding"] = {"rerank": 1.0}
    with pytest.raises(BundleError, match=r"decoding\.rerank"):
        parse_manifest(json.dumps(page), bundle="mine")


def _edit(bundle: Path, **sections: Any) -> None:
    path = bundle / "tellapart.json"
    page = json.loads(path.read_text())
    page.update(sections)
    path.write_text(json.dumps(page))
