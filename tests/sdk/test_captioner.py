"""The whole walk from pixels to a sentence, on the tiny bundle's real graphs."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import (
    BundleError,
    Captioner,
    ClosedError,
    DecodeOptions,
    ImageError,
    RuntimeOptions,
    ShapeError,
    UsageError,
)
from tellapart.bundle import open_bundle, staged_bundle, write_bundle
from tellapart.captioner import sentence_case
from tellapart.graphs import DecoderGraph
from tellapart.tokenizer import Tokenizer
from tellapart.types import Caption, View

Images = dict[str, np.ndarray]

OPTIONS = {
    "bundle": DecodeOptions(),
    "greedy": DecodeOptions(beams=1),
    "beams": DecodeOptions(beams=5, n_best=3),
    "sampled": DecodeOptions(temperature=1.0, top_p=0.9, seed=4, n_best=2),
}


@pytest.fixture
def captioner(tiny_bundle: Path) -> Iterator[Captioner]:
    with Captioner.open(tiny_bundle) as opened:
        yield opened


def tokens(captions: Any) -> list[Any]:
    """What must not depend on batch, thread or process."""
    return [
        (entry.text, entry.token_ids, entry.mean_logprob, entry.truncated, tokens(entry.alternatives))
        for entry in captions
    ]


def test_captions_name_what_is_there(captioner: Captioner, toy_images: Images) -> None:
    for colour in ("red", "green", "blue", "white", "black"):
        caption = captioner.caption(toy_images[colour])
        assert caption.text.startswith(f"A {colour} ")
        assert not caption.truncated
        assert caption.mean_logprob < 0
        assert caption.confidence is None
        assert captioner._engine.tokenizer.encode(caption.text)[1:-1] == list(caption.token_ids)


def test_stages_are_timed_and_loading_counts_once(captioner: Captioner, toy_images: Images) -> None:
    first, second = (captioner.caption(toy_images["red"]).elapsed_ms for _ in range(2))
    assert set(first) == {"load", "preprocess", "vision", "decode"}
    assert first["load"] > 0 == second["load"]
    assert min(second["preprocess"], second["vision"], second["decode"]) > 0
    view = captioner.look(toy_images["red"])
    assert view.elapsed_ms.keys() == {"preprocess", "vision"}
    assert captioner.caption(view).elapsed_ms["vision"] == 0  # it was spent before


@pytest.mark.parametrize("apart", [True, False], ids=["side by side", "one by one"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_captions_as_single_images_do(
    captioner: Captioner, toy_images: Images, name: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecoderGraph, "keeps_rows_apart", lambda *_: apart)
    images = [toy_images[key] for key in toy_images] * 2
    alone = tokens(captioner.caption(image, options=OPTIONS[name]) for image in images)
    assert len({entry[0] for entry in alone}) >= 5
    for size in (1, 3, 8, 100):
        assert tokens(captioner.caption_many(images, batch_size=size, options=OPTIONS[name])) == alone


def test_rows_are_tried_once_before_images_share_a_batch(
    captioner: Captioner, toy_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As dynamic quantization does: one scale for the batch, so a row's numbers move with its neighbours.
    step = DecoderGraph.step
    sizes: list[int] = []

    def shared_scale(self: DecoderGraph, ids: np.ndarray, cache: Any) -> np.ndarray:
        sizes.append(len(ids))
        return step(self, ids, cache) + np.float32(1e-6 * len(ids))

    monkeypatch.setattr(DecoderGraph, "step", shared_scale)
    images = [toy_images[key] for key in ("red", "green", "blue")]
    # With a deadline, as each step is then one of the decoder's.
    options = DecodeOptions(beams=1, deadline_ms=60_000)
    found = tokens(captioner.caption_many(images, options=options))
    assert max(sizes[2:]) == 1
    assert found == tokens(captioner.caption(image, options=options) for image in images)


def test_caption_many_is_lazy_and_in_order(captioner: Captioner, toy_images: Images) -> None:
    taken: list[str] = []

    def images() -> Iterator[np.ndarray]:
        for name in itertools.cycle(("red", "green", "blue")):
            taken.append(name)
            yield toy_images[name]

    captions = captioner.caption_many(images(), batch_size=2)
    assert taken == []
    texts = [next(captions).text.split()[1] for _ in range(5)]
    assert texts == ["red", "green", "blue", "red", "green"]
    assert len(taken) == 6


def test_a_bad_image_raises_in_its_turn_or_takes_its_place(
    captioner: Captioner, toy_images: Images, tmp_path: Path
) -> None:
    (tmp_path / "note.jpg").write_text("not a photo")
    images = [toy_images["red"], tmp_path / "note.jpg", toy_images["blue"], tmp_path / "gone.png"]
    captions = captioner.caption_many(images)
    assert next(captions).text.startswith("A red")
    with pytest.raises(ImageError, match=r"note\.jpg"):
        next(captions)
    results = list(captioner.caption_many(images, on_error="yield", batch_size=3))
    assert [type(result).__name__ for result in results] == [
        "Caption",
        "UnreadableImageError",
        "Caption",
        "UnreadableImageError",
    ]
    assert isinstance(results[3], ImageError)
    assert results[3].image.endswith("gone.png")
    only_bad = list(captioner.caption_many(images[1::2], on_error="yield"))
    assert [isinstance(result, ImageError) for result in only_bad] == [True, True]
    assert list(captioner.caption_many([])) == []


def test_a_view_is_accepted_wherever_an_image_is(captioner: Captioner, toy_images: Images) -> None:
    views = {name: captioner.look(image) for name, image in toy_images.items()}
    for name, image in toy_images.items():
        assert tokens([captioner.caption(views[name])]) == tokens([captioner.caption(image)])
        assert "".join(captioner.stream(views[name])) == "".join(captioner.stream(image))
        assert captioner.look(views[name]) is views[name]
    assert tokens(captioner.caption_many(views.values())) == tokens(
        captioner.caption_many(toy_images.values())
    )
    rows = captioner.retriever.embed_images(views.values())
    assert (rows == captioner.retriever.embed_images(toy_images.values())).all()
    assert captioner.bag(list(views.values())[:3]).ranks == (1, 1, 1)


def test_a_view_has_the_shapes_it_promises_and_cannot_be_changed(
    captioner: Captioner, toy_images: Images
) -> None:
    view = captioner.look(toy_images["red"])
    assert (view.cross_kv.shape, view.embedding.shape) == ((4, 1, 2, 4, 4), (1, 8))
    assert np.linalg.norm(view.embedding) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        view.embedding[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.embedding = view.embedding  # type: ignore[misc]


def test_a_view_of_another_bundle_is_refused(captioner: Captioner, toy_images: Images) -> None:
    view = captioner.look(toy_images["red"])
    foreign = dataclasses.replace(view, bundle_sha256="0" * 64)
    calls: list[Callable[[View], Any]] = [
        captioner.caption,
        captioner.look,
        lambda view: list(captioner.stream(view)),
        lambda view: list(captioner.caption_many([view])),
        lambda view: captioner.bag([view, view]),
        lambda view: captioner.retriever.embed_images([view]),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="this View was made by bundle 000000000000"):
            call(foreign)


def test_stream_pieces_make_the_greedy_caption(captioner: Captioner, toy_images: Images) -> None:
    counts = []
    for image in toy_images.values():
        pieces = list(captioner.stream(image))
        assert "".join(pieces) == captioner.caption(image, options=OPTIONS["greedy"]).text
        assert all(pieces)
        counts.append(len(pieces))
    assert max(counts) >= 4
    short = DecodeOptions(max_new_tokens=2)
    assert "".join(captioner.stream(toy_images["red"], options=short)) == "A red"


def test_streamed_words_are_never_taken_back(captioner: Captioner, tiny_bundle: Path) -> None:
    # Any order of pieces, also those that join: what was handed out must stay the beginning of the text.
    with open_bundle(tiny_bundle) as bundle:
        tokenizer = Tokenizer.from_bundle(bundle)
    joining = [tokenizer.encode(text)[1] for text in ("'", "-", "s", "t", ",", ".", "a", "dog")]
    ends = [piece for piece in range(4, tokenizer.vocabulary_size) if tokenizer.decode([4, piece]).isalpha()]
    source = random.Random(8)
    for _ in range(300):
        ids = source.choices([*joining * 4, *ends, *range(4, tokenizer.vocabulary_size)], k=12)
        whole = sentence_case(tokenizer.decode(ids))
        for count in range(1, 12):
            certain = sentence_case(tokenizer.decode(ids[:count])).rpartition(" ")[0]
            assert whole.startswith(certain), (ids, certain, whole)


def test_closing_a_stream_stops_the_decoder(
    captioner: Captioner, toy_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = DecoderGraph.step, []
    monkeypatch.setattr(DecoderGraph, "step", lambda *args: calls.append(1) or step(*args))
    pieces = captioner.stream(toy_images["green"])
    assert next(pieces) == "A"
    pieces.close()
    assert len(calls) == 2
    assert list(pieces) == []


@pytest.mark.parametrize(
    "options",
    [DecodeOptions(beams=2), DecodeOptions(temperature=1.0), DecodeOptions(n_best=2)],
)
def test_what_does_not_stream_is_refused(
    captioner: Captioner, toy_images: Images, options: DecodeOptions
) -> None:
    with pytest.raises(UsageError, match="stream is greedy"):
        captioner.stream(toy_images["red"], options=options)


def test_options_override_the_bundle_and_defaults_give_way(captioner: Captioner, toy_images: Images) -> None:
    def caption(**options: Any) -> Caption:
        return captioner.caption(toy_images["green"], options=DecodeOptions(**options))

    assert caption(max_new_tokens=2).token_ids == caption(beams=1).token_ids[:2]
    assert caption(max_new_tokens=2).truncated
    assert len(caption(min_new_tokens=40, beams=1).token_ids) >= 40  # the bundle would stop at 24
    several = caption(n_best=6)
    assert len(several.alternatives) == 5
    found = [several, *several.alternatives]
    assert len({entry.token_ids for entry in found}) == 6
    assert sorted(found, key=lambda entry: -entry.mean_logprob) == found  # length penalty 1
    late = caption(deadline_ms=1e-6)
    assert late.truncated
    assert len(late.token_ids) == 1


def test_seeds_decide_what_is_sampled(captioner: Captioner, toy_images: Images) -> None:
    def texts(seed: int | None) -> list[Any]:
        options = DecodeOptions(temperature=1.5, seed=seed, n_best=4)
        return tokens([captioner.caption(toy_images["red"], options=options)])

    assert texts(1) == texts(1) != texts(2)
    assert len({str(texts(None)) for _ in range(5)}) > 1


def test_bags_are_captioned_and_judged(captioner: Captioner, toy_images: Images) -> None:
    names = ["red", "green", "red_blue"]
    result = captioner.bag([toy_images[name] for name in names], mode="plain")
    assert tokens(result.captions) == tokens(captioner.caption(toy_images[name]) for name in names)
    assert result.similarity.shape == (3, 3)
    texts = captioner.retriever.embed_texts([caption.text for caption in result.captions])
    images = captioner.retriever.embed_images([toy_images[name] for name in names])
    assert result.similarity == pytest.approx(texts @ images.T, abs=1e-6)


def test_rerank_takes_the_candidate_of_the_largest_margin(captioner: Captioner, toy_images: Images) -> None:
    names = ["red", "red_blue", "blue"]
    images = [toy_images[name] for name in names]
    options = DecodeOptions(n_best=6)
    result = captioner.bag(images, mode="rerank", options=options)
    rows = captioner.retriever.embed_images(images)
    changed = 0
    for own, image in enumerate(images):
        best = captioner.caption(image, options=options)
        candidates = [best, *best.alternatives]
        margins = []
        for candidate in candidates:
            scores = rows @ captioner.retriever.embed_texts([candidate.text])[0]
            margins.append(scores[own] - np.delete(scores, own).max())
        place = int(np.argmax(margins))
        changed += place > 0
        chosen = result.captions[own]
        assert chosen.text == candidates[place].text
        assert result.margins[own] == pytest.approx(margins[place], abs=1e-5)
        rest = [entry.text for number, entry in enumerate(candidates) if number != place]
        assert [entry.text for entry in chosen.alternatives] == rest
    assert changed
    plain = captioner.bag(images, mode="plain")
    assert min(result.margins) >= min(plain.margins)


def test_bags_that_are_none_and_options_that_do_not_fit(captioner: Captioner, toy_images: Images) -> None:
    images = [toy_images["red"], toy_images["blue"]]
    for bad, message in (([], "at least one"), ("photo.jpg", "one str")):
        for mode in ("contrast", "rerank", "plain"):
            with pytest.raises(UsageError, match=message):
                captioner.bag(bad, mode=mode)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="temperature=1 samples"):
        captioner.bag(images, mode="contrast", options=DecodeOptions(temperature=1.0))
    with pytest.raises(UsageError, match="contrast, rerank, plain"):
        captioner.bag(images, mode="best")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="raise beams"):
        captioner.bag(images, mode="rerank", options=OPTIONS["greedy"])
    with pytest.raises(ImageError):
        captioner.bag([*images, b"no image"])
    same = captioner.bag([images[0], images[0]], mode="rerank")
    assert (same.ranks, same.margins, same.recall_at_1) == ((2, 2), (0.0, 0.0), 0.0)


def test_slips_in_arguments_are_named(captioner: Captioner, toy_images: Images) -> None:
    with pytest.raises(UsageError, match="one str"):
        captioner.caption_many("photo.jpg")
    with pytest.raises(UsageError, match="batch_size"):
        captioner.caption_many([], batch_size=0)
    with pytest.raises(UsageError, match="on_error"):
        captioner.caption_many([], on_error="skip")  # type: ignore[call-overload]
    with pytest.raises(ShapeError):
        captioner.caption(toy_images["red"].astype(np.float32))  # type: ignore[arg-type]


def test_eight_threads_get_the_captions_of_one(captioner: Captioner, toy_images: Images) -> None:
    images = [*toy_images.values()] * 8
    with ThreadPoolExecutor(8) as pool:  # first, so that they race for opening the graphs too
        found = list(pool.map(captioner.caption, images))
        rows = list(pool.map(lambda caption: captioner.retriever.embed_texts([caption.text])[0], found))
    assert tokens(found) == tokens(map(captioner.caption, images))
    assert (np.stack(rows) == captioner.retriever.embed_texts([caption.text for caption in found])).all()
    assert sum(caption.elapsed_ms["load"] > 0 for caption in found) <= 3


def test_use_after_close_says_so(tiny_bundle: Path, toy_images: Images) -> None:
    captioner = Captioner.open(tiny_bundle)
    view = captioner.look(toy_images["red"])
    retriever = captioner.retriever
    retriever.close()
    assert captioner.caption(view).text  # a shared retriever takes nothing with it
    half = captioner.stream(view)
    next(half)
    begun = captioner.caption_many([view] * 5, batch_size=2)
    next(begun)
    other = captioner.retriever
    captioner.close()
    captioner.close()
    calls: list[Callable[[], Any]] = [
        lambda: captioner.caption(view),
        lambda: captioner.look(view),
        lambda: captioner.caption_many([]),
        lambda: captioner.stream(view),
        lambda: captioner.bag([view, view]),
        lambda: captioner.retriever,
        lambda: other.embed_texts(["a"]),
        lambda: retriever.embed_texts(["a"]),
        lambda: list(half),
        lambda: list(begun),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="open another"):
            call()


def test_pickles_by_path_and_options(
    tiny_bundle: Path, toy_images: Images, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tiny_bundle.parent)
    runtime = RuntimeOptions(threads=1, max_image_megapixels=0.0002)
    with Captioner.open("tiny_bundle", runtime=runtime) as captioner:
        content = pickle.dumps((captioner, captioner.retriever))
        expected = captioner.caption(toy_images["black"])
    assert len(content) < 1000
    monkeypatch.chdir(tmp_path)
    copy, retriever = pickle.loads(content)
    with copy, retriever:
        assert tokens([copy.caption(toy_images["black"])]) == tokens([expected])
        assert copy._engine.runtime == runtime
        assert retriever.embed_texts(["a red field"]).shape == (1, 8)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # that threads and fork mix badly is the point
def test_a_forked_child_opens_its_own_graphs(tiny_bundle: Path, toy_images: Images, tmp_path: Path) -> None:
    # A zip, as its unpacked copy is shared: a child that closes must not take it away.
    with staged_bundle(tmp_path / "tiny.zip") as scratch:
        shutil.copytree(tiny_bundle, scratch, dirs_exist_ok=True)
    captioner = Captioner.open(tmp_path / "tiny.zip")
    expected = tokens(map(captioner.caption, toy_images.values()))
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        answers.put(tokens(map(captioner.caption, toy_images.values())))
        captioner.close()

    process = context.Process(target=child)
    # A thread of the parent is opening a graph at the moment of the fork: its lock is never released there.
    with captioner._engine._here().lock:
        process.start()
    process.join(20)
    if process.is_alive():
        process.kill()
        pytest.fail("the child hangs")
    assert process.exitcode == 0
    assert answers.get() == expected
    assert tokens(map(captioner.caption, toy_images.values())) == expected
    assert captioner.retriever.embed_texts(["a"]).shape == (1, 8)  # read from the unpacked copy just now
    captioner.close()


def test_a_retriever_alone_is_no_captioner(tiny_bundle: Path, tmp_path: Path) -> None:
    with open_bundle(tiny_bundle) as bundle:
        fields = bundle.manifest.to_fields()
        fields["kind"] = ["retriever"]
        fields["graphs"] = [graph for graph in fields["graphs"] if graph["role"] != "decoder"]
        with staged_bundle(tmp_path / "half") as scratch:
            names = [name for name in bundle.manifest.files if name != "decoder.onnx"]
            write_bundle(scratch, fields, {name: bundle.path(name) for name in names})
    with pytest.raises(BundleError, match="is a retriever, and a captioner is needed"):
        Captioner.open(tmp_path / "half")


def test_a_zip_captions_as_its_folder_does(
    captioner: Captioner, tiny_bundle: Path, toy_images: Images, tmp_path: Path
) -> None:
    with staged_bundle(tmp_path / "tiny.zip") as scratch:
        shutil.copytree(tiny_bundle, scratch, dirs_exist_ok=True)
    with Captioner.open(tmp_path / "tiny.zip") as zipped:
        assert zipped.bundle.sha256 == captioner.bundle.sha256
        assert tokens(map(zipped.caption, toy_images.values())) == tokens(
            map(captioner.caption, toy_images.values())
        )


@pytest.mark.usefixtures("block_network")
def test_no_step_reaches_for_the_network(tiny_bundle: Path, toy_images: Images) -> None:
    with Captioner.open(tiny_bundle) as captioner:
        assert captioner.bag([toy_images["red"], toy_images["blue"]], mode="rerank").recall_at_1 == 1
