"""Support of captions by plain beams, against shares counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tellapart.bag import judge_bag, spoken_options
from tellapart.support import LEAST, log_chance, support
from tellapart.types import Caption, DecodeOptions


def said(ids: tuple[int, ...], chance: float, *, text: str = "", truncated: bool = False) -> Caption:
    """A caption of a given chance as a whole."""
    pieces = len(ids) + (not truncated)
    return Caption(
        text=text, token_ids=ids, mean_logprob=math.log(chance) / pieces, truncated=truncated, elapsed_ms={}
    )


def test_a_piece_is_borne_out_by_the_share_of_chance_that_holds_it() -> None:
    beams = [said((4, 5), 0.3), said((4, 6, 6), 0.1), said((4, 5, 7), 0.1)]
    found = support([said((5, 4), 0.01), said((6, 6, 6), 0.01), said((4, 9), 0.01), said((), 0.01)], beams)
    assert found == pytest.approx(
        [
            math.log(0.8 + LEAST) + math.log(1 + LEAST),
            math.log(0.2 + LEAST),  # however often it is repeated
            math.log(1 + LEAST) + math.log(LEAST),
            0.0,
        ],
        abs=1e-5,
    )


def test_chances_too_small_for_a_float_still_have_shares() -> None:
    beams = [said((4,), 1e-300), said((5,), 3e-300)]
    assert support(beams, beams) == pytest.approx([math.log(0.25 + LEAST), math.log(0.75 + LEAST)], abs=1e-5)


def test_a_caption_without_an_end_has_no_end_mark_to_count() -> None:
    assert log_chance(said((4, 5), 0.3)) == pytest.approx(math.log(0.3))
    assert log_chance(said((4, 5), 0.3, truncated=True)) == pytest.approx(math.log(0.3))


def test_of_equally_likely_and_telling_captions_the_one_that_is_borne_out_is_taken() -> None:
    own = said((4, 5), 0.3, text="a dog")
    invented = said((4, 8), 0.3, text="a hat")
    beams = [said((4, 5, 6), 0.2, text="a dog runs")]
    rows = np.eye(2, dtype=np.float32)
    told = {"a dog": 0, "a hat": 0, "a dog runs": 1, "else": 1}

    def embed(texts: list[str]) -> np.ndarray:
        return rows[[told[text] for text in texts]]

    other = [said((9,), 0.5, text="else")]
    result = judge_bag([[invented, own], other], rows, embed, mode="contrast", spoken=[beams, other])
    assert result.captions[0].text == "a dog"
    assert {entry.text for entry in result.captions[0].alternatives} == {"a hat", "a dog runs"}
    assert not result.captions[1].alternatives  # said by both searches, and once here


def test_the_plain_search_beside_a_steered_one_keeps_all_its_beams() -> None:
    options = spoken_options(None)
    assert (options.beams, options.n_best, options.rerank) == (10, 10, 0.0)
    options = spoken_options(DecodeOptions(beams=4, n_best=2, length_penalty=0.5))
    assert (options.beams, options.n_best, options.length_penalty) == (4, 4, 0.5)
