"""A greedy caption in one run of the runtime: the same tokens and numbers as step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from tellapart import Captioner, DecodeOptions, RuntimeOptions
from tellapart.backends import onnx_loop, ort
from tellapart.backends.onnx_loop import greedy_model
from tellapart.bundle import open_bundle
from tellapart.decode import Rules, checked, greedy, is_plain, log_softmax
from tellapart.errors import ClosedError
from tellapart.types import Caption

PHOTOS = sorted((Path(__file__).parents[2] / "samples" / "photos").glob("*.jpg"))
GREEDY = DecodeOptions(beams=1, rerank=0.0, confidence=False)
IDS: dict[str, Any] = {"start_id": 2, "end_id": 3, "banned_ids": (0, 1, 2)}


def found(captioner: Captioner, options: DecodeOptions) -> list[tuple[Any, ...]]:
    """All that decoding decides about the captions of the sample photos."""
    captions: list[Caption] = [captioner.caption(photo, options=options) for photo in PHOTOS]
    return [(each.text, each.token_ids, each.mean_logprob, each.truncated) for each in captions]


def opened(captioner: Captioner) -> set[str]:
    [here] = captioner._engine._opened.values()
    return {key for key, graph in here.graphs.items() if graph is not None}


@pytest.mark.parametrize(("fewest", "longest"), [(0, 1), (0, 4), (0, 24), (20, 20)])
def test_captions_of_the_embedded_model_are_bit_for_bit_those_of_single_steps(
    fewest: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(GREEDY, min_new_tokens=fewest, max_new_tokens=longest)
    with Captioner.open() as captioner:
        whole = found(captioner, options)
        assert opened(captioner) == {"vision", "greedy"}
    monkeypatch.setattr(ort, "_MOST_LOOPED_BYTES", 0)
    with Captioner.open() as captioner:
        assert found(captioner, options) == whole
        assert opened(captioner) == {"vision", "decoder"}
    assert longest == 24 or {len(ids) for _, ids, *_ in whole} == {longest}


@pytest.mark.parametrize(
    "options",
    [
        DecodeOptions(beams=2, rerank=0.0),
        DecodeOptions(beams=1, temperature=1.0, seed=1),
        DecodeOptions(beams=1, guidance=1.5),
        DecodeOptions(beams=1, no_repeat_ngram=2),
        DecodeOptions(beams=1, deadline_ms=60_000),
    ],
)
def test_what_looks_at_more_than_the_next_chance_goes_step_by_step(
    tiny_bundle: Path, toy_images: dict[str, np.ndarray], options: DecodeOptions
) -> None:
    with Captioner.open(tiny_bundle) as captioner:
        captioner.caption(toy_images["red"], options=options)
        assert opened(captioner) >= {"vision", "decoder"}
        assert "greedy" not in opened(captioner)


def test_a_graph_that_the_runtime_refuses_costs_nothing_but_time(
    tiny_bundle: Path,
    toy_images: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Captioner.open(tiny_bundle) as captioner:
        right = captioner.caption(toy_images["red"], options=GREEDY).token_ids
        assert "greedy" in opened(captioner)
    # Refused when it is opened.
    monkeypatch.setattr(ort, "greedy_model", lambda model, page, **ids: model[: len(model) // 2])
    with Captioner.open(tiny_bundle) as captioner:
        assert captioner.caption(toy_images["red"], options=GREEDY).token_ids == right
        assert "greedy" not in opened(captioner)
    # Refused when it is run: the keys and values of no image.
    monkeypatch.undo()
    with Captioner.open(tiny_bundle) as captioner:
        whole = captioner._engine.greedy(Rules(**IDS))
        assert whole is not None
        assert whole.write(np.zeros((2, 1, 1, 1, 7), np.float32), Rules(**IDS)) is None
    assert "Error" not in capfd.readouterr().err


def test_a_graph_that_answers_otherwise_is_not_believed(
    tiny_bundle: Path, toy_images: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Captioner.open(tiny_bundle) as captioner:
        right = captioner.caption(toy_images["red"], options=GREEDY)

        def banned(model: bytes, page: object, *, start_id: int, end_id: int, banned_ids: object) -> object:
            banned_ids = (*IDS["banned_ids"], right.token_ids[1])
            return greedy_model(model, page, start_id=start_id, end_id=end_id, banned_ids=banned_ids)

        monkeypatch.setattr(ort, "greedy_model", banned)
        with Captioner.open(tiny_bundle) as other:
            caption = other.caption(toy_images["red"], options=GREEDY)
            assert (caption.token_ids, caption.mean_logprob) == (right.token_ids, right.mean_logprob)
            assert opened(other) == {"vision", "greedy", "decoder"}


def test_what_is_no_decoder_is_left_to_those_who_say_so(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle) as bundle:
        page = bundle.graph("decoder", "onnx")
        model, text = (bundle.read_bytes(bundle.graph(role, "onnx").file) for role in ("decoder", "text"))
    assert greedy_model(model, page, **IDS) is not None
    assert greedy_model(text, page, **IDS) is None
    assert greedy_model(model, page, start_id=2, end_id=10**6, banned_ids=(0,)) is None
    assert greedy_model(model, page, start_id=2, end_id=3, banned_ids=(10**6,)) is None
    [logits, present] = page.outputs
    for shape in ((1,), ("b", "V"), ("b", 10**12)):
        other = replace(page, outputs=(replace(logits, shape=shape), present))
        assert greedy_model(model, other, **IDS) is None


def test_a_closed_captioner_is_closed(tiny_bundle: Path) -> None:
    with Captioner.open(tiny_bundle) as captioner:
        whole = captioner._engine.greedy(Rules(**IDS))
    assert whole is not None
    with pytest.raises(ClosedError):
        whole.write(np.zeros((2, 1, 1, 1, 1), np.float32), Rules(**IDS))


def test_other_providers_and_fixed_shapes_have_no_such_graph(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bundle(tiny_bundle) as bundle:
        page = bundle.graph("decoder", "onnx")
        model = bundle.read_bytes(page.file)
        inputs = tuple(
            replace(each, shape=(*each.shape[:3], 8, each.shape[4])) if each.name == "past_kv" else each
            for each in page.inputs
        )
        windowed = replace(page, inputs=inputs)
        assert windowed != page
        assert greedy_model(model, page, **IDS) is not None
        assert greedy_model(model, windowed, **IDS) is None
        assert ort.open_greedy(bundle, RuntimeOptions(), **IDS) is not None
        monkeypatch.setattr(ort, "available_providers", lambda: ("CUDAExecutionProvider",))
        cuda = RuntimeOptions(providers=("CUDAExecutionProvider",))
        assert ort.open_greedy(bundle, cuda, **IDS) is None


class Recorded:
    """Logits by position, as a step function and a cache of one row."""

    rows = 1

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.place = logits, 0

    def select(self, rows: np.ndarray) -> None:
        self.rows = len(rows)


def steps(logits: np.ndarray, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """What a loop that only looks at logits takes, and what it saw."""
    allowed = logits.copy()
    allowed[:, list(rules.banned_ids)] = -np.inf
    allowed[: rules.min_new_tokens, rules.end_id] = -np.inf
    taken = allowed.argmax(axis=1)[: rules.max_new_tokens + 1]
    ends = np.flatnonzero(taken == rules.end_id)
    count = ends[0] + 1 if len(ends) else len(taken)
    return taken[:count], logits[:count]


@settings(deadline=None, max_examples=200)
@given(
    logits=stn.arrays(
        np.float32, (6, 9), elements=st.sampled_from([-40.0, -1.0, 0.0, 0.5, 0.50000006, 1e-7, 3.0])
    ),
    longest=st.integers(1, 5),
    fewest=st.integers(0, 5),
)
def test_what_is_checked_is_what_greedy_finds_or_nothing(
    logits: np.ndarray, longest: int, fewest: int
) -> None:
    rules = Rules(**IDS, max_new_tokens=longest, min_new_tokens=min(fewest, longest))

    def step(ids: np.ndarray, cache: Recorded) -> np.ndarray:
        cache.place += 1
        return log_softmax(logits[cache.place - 1 : cache.place])

    [wanted] = greedy(step, Recorded(logits), rules=rules)
    tokens, seen = steps(logits, rules)
    assert checked(tokens, seen, rules) in (wanted, None)
    wrong = tokens.copy()
    wrong[0] = 4 if tokens[0] != 4 else 5
    assert checked(wrong, seen, rules) in (wanted, None)
    if len(np.unique(logits[0])) == 9:
        assert checked(wrong, seen, rules) is None


def test_logits_that_are_no_numbers_are_left_to_the_steps() -> None:
    rules = Rules(**IDS, max_new_tokens=5)
    logits = np.zeros((2, 9), np.float32)
    logits[:, 3] = [0, 5]
    logits[0, 4] = 2
    assert checked(np.array([4, 3]), logits, rules) is not None
    logits[1, 7] = np.nan
    assert checked(np.array([4, 3]), logits, rules) is None


def test_plain_rules() -> None:
    assert is_plain(Rules(start_id=0, end_id=1))
    for more in ({"no_repeat_ngram": 3}, {"deadline_s": 1.0}):
        assert not is_plain(Rules(start_id=0, end_id=1, **more))  # type: ignore[arg-type]


def test_nothing_of_the_image_is_computed_again_at_each_step(tiny_bundle: Path) -> None:
    with open_bundle(tiny_bundle) as bundle:
        model = bundle.read_bytes(bundle.graph("decoder", "onnx").file)
    _, parts = onnx_loop._taken_apart(model)
    before, body = onnx_loop._by_image(parts[1], parts[5])
    assert len(before) + len(body) == len(parts[1])
    constant = {onnx_loop._text(tensor, 8) for tensor in parts[5]}
    of_image = {"cross_kv"}.union(*(onnx_loop._texts(node, 2) for node in before))
    assert before
    for node in body:
        taken = set(onnx_loop._texts(node, 1))
        assert not taken & of_image or taken - of_image - constant
