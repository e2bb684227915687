"""Options check themselves; results are plain and frozen."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tellapart.errors import UsageError
from tellapart.types import BagResult, Caption, DecodeOptions, RuntimeOptions, View


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.0),
        ("max_new_tokens", True),
        ("min_new_tokens", -1),
        ("beams", 0),
        ("beams", "3"),
        ("length_penalty", -0.5),
        ("length_penalty", math.nan),
        ("no_repeat_ngram", -1),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("seed", -1),
        ("n_best", 0),
        ("n_best", None),
        ("deadline_ms", 0),
    ],
)
def test_decode_options_refuse_and_name_the_field(field, value):
    with pytest.raises(UsageError, match=rf"^{field} must be .*got "):
        DecodeOptions(**{field: value})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 0.7, "beams": 3}, "beams=1 to sample"),
        ({"top_p": 0.9}, "top_p=0.9 only matters when sampling"),
        ({"seed": 4}, "seed=4 only matters when sampling"),
        ({"n_best": 4, "beams": 3}, "n_best=4 captions cannot come out of beams=3"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, r"min_new_tokens \(9\) is above max_new_tokens \(8\)"),
    ],
)
def test_decode_options_refuse_fields_that_exclude_each_other(fields, words):
    with pytest.raises(UsageError, match=words):
        DecodeOptions(**fields)


def test_decode_options_that_fit_together():
    assert DecodeOptions().beams is None
    sampled = DecodeOptions(temperature=0.8, top_p=0.9, seed=np.int64(3), beams=1, n_best=4)
    assert dataclasses.replace(sampled, seed=5).seed == 5
    assert DecodeOptions(n_best=3, beams=3, min_new_tokens=8, max_new_tokens=8).n_best == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend", "tensorrt"),
        ("providers", "CPUExecutionProvider"),
        ("providers", (1,)),
        ("provider_options", [("CPUExecutionProvider", "a=b")]),
        ("threads", 0),
        ("threads", "all"),
        ("max_image_megapixels", 0),
        ("max_image_megapixels", "50"),
    ],
)
def test_runtime_options_refuse_and_name_the_field(field, value):
    with pytest.raises(UsageError, match=rf"^{field} must be .*got "):
        RuntimeOptions(**{field: value})


def test_runtime_options_keep_a_list_of_providers_as_a_tuple():
    options = RuntimeOptions(providers=["CPUExecutionProvider"], threads=2)
    assert options.providers == ("CPUExecutionProvider",)
    settings = {"CPUExecutionProvider": {"a": "b"}}
    set_up = dataclasses.replace(options, provider_options=settings)
    settings["CPUExecutionProvider"]["a"] = "c"
    assert set_up.provider_options == {"CPUExecutionProvider": {"a": "b"}}
    assert set_up != options
    assert hash(set_up) == hash(options)
    for wrong in ({"CPUExecutionProvider": {"a": 1}}, {"CPUExecutionProvider": "a"}):
        with pytest.raises(UsageError, match="provider_options must be"):
            dataclasses.replace(options, provider_options=wrong)
    assert hash(options) == hash(RuntimeOptions(providers=("CPUExecutionProvider",), threads=2))


def test_results_are_frozen_and_compare_without_asking_arrays():
    caption = Caption(text="A dog", token_ids=(7,), mean_logprob=-0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        caption.text = "A cat"
    assert caption == Caption(text="A dog", token_ids=(7,), mean_logprob=-0.5)
    view = View(cross_kv=np.zeros((4, 1, 2, 4, 4), np.float32), embedding=np.ones((1, 8), np.float32))
    bag = BagResult(
        captions=(caption,),
        ranks=(1,),
        margins=(0.0,),
        similarity=np.ones((1, 1), np.float32),
        recall_at_1=1.0,
    )
    assert view == view
    assert bag == bag
