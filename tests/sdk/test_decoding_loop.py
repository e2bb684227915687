"""The quick loop against the plain one: the same tokens, the same numbers, whatever was saved on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from tellapart import Captioner, DecodeOptions, RuntimeOptions, UsageError
from tellapart.backends import Session, open_session
from tellapart.beams import best_continuations
from tellapart.bundle import Bundle, open_bundle
from tellapart.decode import log_softmax
from tellapart.engine import Engine
from tellapart.errors import ClosedError
from tellapart.graphs import DecoderGraph
from tellapart.kv_cache import KVCache

PHOTOS = sorted((Path(__file__).parents[2] / "samples" / "photos").glob("*.jpg"))


def plain_continuations(totals: Any, steered: Any, count: int) -> tuple[list[int], list[float]]:
    """All scores added up and sorted."""
    scores = (totals[:, None] + steered).ravel()
    order = [int(place) for place in np.argsort(-scores, kind="stable") if scores[place] > -np.inf][:count]
    return order, [float(scores[place]) for place in order]


@settings(deadline=None, max_examples=200)
@given(data=st.data(), beams=st.integers(1, 4), size=st.integers(1, 200), count=st.integers(1, 20))
def test_the_best_continuations_are_those_of_a_full_sort(
    data: st.DataObject, beams: int, size: int, count: int
) -> None:
    # Few distinct values, so that ties are common, and some tokens that may not come.
    levels = st.sampled_from([-np.inf, -3.0, -1.5, -1.25, -0.5])
    steered = data.draw(stn.arrays(np.float32, (beams, size), elements=levels))
    totals = data.draw(stn.arrays(np.float64, beams, elements=st.sampled_from([-2.0, -1.0, 0.0])))
    assert best_continuations(totals, steered, count) == plain_continuations(totals, steered, count)


def greedy_by_hand(captioner: Captioner, photo: Path) -> list[int]:
    """The plainest loop: one run a token, everything handed over anew, no search."""
    engine = captioner._engine
    session = engine.decoder().session
    cross = captioner.look(photo).cross_kv
    tokenizer = engine.tokenizer
    past = np.zeros((*cross.shape[:3], 0, cross.shape[4]), np.float32)
    ids: list[int] = []
    newest = tokenizer.start_id
    for _ in range(captioner.bundle.manifest.decoding.max_new_tokens + 1):
        answer = session.run({"ids": np.array([[newest]]), "past_kv": past, "cross_kv": cross})
        past, logits = answer["present_kv"], answer["logits"][0]
        logits[[tokenizer.pad_id, tokenizer.unknown_id, tokenizer.start_id]] = -np.inf
        newest = int(logits.argmax())
        if newest == tokenizer.end_id:
            break
        ids.append(newest)
    return ids[: captioner.bundle.manifest.decoding.max_new_tokens]


def test_greedy_captions_of_the_embedded_model_are_those_of_a_plain_loop() -> None:
    with Captioner.open() as captioner:
        for photo in PHOTOS:
            caption = captioner.caption(photo, options=DecodeOptions(beams=1, rerank=0.0, confidence=False))
            assert list(caption.token_ids) == greedy_by_hand(captioner, photo)


def test_beams_that_share_their_image_give_what_a_copy_for_each_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = DecodeOptions(beams=4, n_best=4, rerank=0.0)
    with Captioner.open() as captioner:
        quick = [captioner.caption(photo, options=options) for photo in PHOTOS]
        assert captioner._engine.decoder()._shares_image
    monkeypatch.setattr(KVCache, "shared_cross", None)
    monkeypatch.setattr("tellapart.beams.best_continuations", plain_continuations)
    with Captioner.open() as captioner:
        plain = [captioner.caption(photo, options=options) for photo in PHOTOS]
    for fast, slow in zip(quick, plain, strict=True):
        for one, other in zip([fast, *fast.alternatives], [slow, *slow.alternatives], strict=True):
            assert (one.token_ids, one.mean_logprob) == (other.token_ids, other.mean_logprob)


class ScriptedSession:
    """A decoder that counts the rows of images it is given."""

    backend, providers, threads = "onnxruntime", (), 1

    def __init__(self, *, refuses: bool, off: float) -> None:
        self.refuses, self.off = refuses, off
        self.images: list[int] = []

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Logits that are all alike."""
        rows, images = len(feeds["ids"]), feeds["cross_kv"].shape[1]
        self.images.append(images)
        past = feeds["past_kv"]
        logits = np.zeros((rows, 7), np.float32) + (self.off if images < rows else 0)
        token = np.zeros((*past.shape[:3], 1, past.shape[4]), np.float32)
        return {"logits": logits, "present_kv": np.concatenate([past, token], axis=3)}

    def run_quietly(self, feeds: Mapping[str, Any]) -> dict[str, Any] | None:
        """None where the graph refuses one image for several rows."""
        return None if self.refuses else self.run(feeds)

    def close(self) -> None:
        """Nothing to let go."""


@pytest.mark.parametrize(
    ("refuses", "off", "images"),
    [(True, 0.0, [3, 3, 3]), (False, 0.5, [3, 1, 3, 3]), (False, 0.0, [3, 1, 1, 1])],
)
def test_one_image_serves_all_rows_only_where_the_graph_gives_the_same(
    refuses: bool, off: float, images: list[int]
) -> None:
    session = ScriptedSession(refuses=refuses, off=off)
    decoder = DecoderGraph(session)
    cache = KVCache.empty(np.zeros((2, 1, 1, 4, 2), np.float32))
    cache.select(np.zeros(3, np.int64))
    for _ in range(3):
        logprobs = decoder.step(np.ones(3, np.int64), cache)
        assert np.array_equal(logprobs, log_softmax(np.zeros((3, 7), np.float32)))
    assert session.images == images


def test_rows_of_different_images_are_never_shared() -> None:
    cache = KVCache.empty(np.arange(2, dtype=np.float32).reshape(1, 2, 1, 1, 1).repeat(2, axis=0))
    assert cache.shared_cross is None
    cache.select(np.array([1, 0, 1]))
    assert cache.shared_cross is None
    cache.select(np.array([2, 0]))
    shared = cache.shared_cross
    assert shared is not None
    assert shared.shape[1] == 1
    assert shared.ravel().tolist() == [1, 1]
    cache.select(np.array([0]))
    assert cache.shared_cross is None  # one row needs no sharing


@pytest.fixture
def text(tiny_bundle: Path) -> Any:
    with open_bundle(tiny_bundle) as bundle:
        yield open_text(bundle)


def open_text(bundle: Bundle) -> Session:
    """The text graph, ready to run."""
    return open_session(bundle, "text", RuntimeOptions())


def test_a_quiet_run_refuses_without_a_word(text: Session, capfd: pytest.CaptureFixture[str]) -> None:
    assert text.run_quietly({"ids": np.ones((1, 2, 2), np.int64)}) is None
    fitting = {"ids": np.array([[1, 5, 2]], np.int64)}
    found = text.run_quietly(fitting)
    assert found is not None
    assert np.array_equal(found["embedding"], text.run(fitting)["embedding"])
    assert capfd.readouterr().err == ""
    text.close()
    with pytest.raises(ClosedError):
        text.run_quietly(fitting)


@pytest.mark.parametrize("threads", [1, 3])
def test_runs_are_spread_in_order_and_the_first_error_is_raised(tiny_bundle: Path, threads: int) -> None:
    engine = Engine(tiny_bundle, RuntimeOptions(threads=threads))
    assert engine.spread(lambda number: number * number, list(range(20))) == [n * n for n in range(20)]

    def fail(number: int) -> int:
        raise UsageError(f"number {number}")

    with pytest.raises(UsageError, match="number 4"):
        engine.spread(fail, [4, 5, 6])
    engine.close()
    if threads > 1:
        with pytest.raises(ClosedError):
            engine.spread(abs, [1, 2])


def test_texts_spread_over_threads_have_the_rows_they_have_alone(tiny_bundle: Path) -> None:
    texts = ["a red field", "a blue one", "a red field", "a"]
    with (
        Captioner.open(tiny_bundle, runtime=RuntimeOptions(threads=4)) as many,
        Captioner.open(tiny_bundle, runtime=RuntimeOptions(threads=1)) as one,
    ):
        alone = [one.retriever.embed_texts([text])[0] for text in texts]
        assert np.array_equal(many.retriever.embed_texts(texts), np.stack(alone))


def test_spinning_is_only_for_who_asks(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="spin"):
        RuntimeOptions(spin=1)  # type: ignore[arg-type]
    with Captioner.open(tiny_bundle, runtime=RuntimeOptions(threads=2, spin=True)) as captioner:
        assert captioner.caption(np.zeros((8, 8, 3), np.uint8)).token_ids
