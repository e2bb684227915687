"""Embeddings and the windows of long texts, on the tiny bundle's real graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import BackendError, BundleError, ClosedError, ImageError, Retriever, UsageError
from tellapart.bundle import open_bundle, staged_bundle, write_bundle
from tellapart.graphs import TextGraph, unit_rows
from tellapart.retriever import share_out

Images = dict[str, np.ndarray]


@pytest.fixture
def retriever(tiny_bundle: Path) -> Iterator[Retriever]:
    with Retriever.open(tiny_bundle) as opened:
        yield opened


def test_rows_are_unit_float32_in_order(retriever: Retriever, toy_images: Images) -> None:
    images = retriever.embed_images(toy_images.values())
    texts = retriever.embed_texts(iter(["a red field", "a blue sky", ""]))
    assert (images.shape, texts.shape) == ((len(toy_images), 8), (3, 8))
    for rows in (images, texts):
        assert rows.dtype == np.float32
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)
    assert (retriever.embed_texts(["a blue sky"])[0] == texts[1]).all()
    assert (retriever.embed_images([toy_images["blue"]])[0] == images[list(toy_images).index("blue")]).all()


def test_words_find_their_colours(retriever: Retriever, toy_images: Images) -> None:
    names = ["red", "green", "blue", "white", "black"]
    texts = retriever.embed_texts([f"a {name} field" for name in names])
    images = retriever.embed_images([toy_images[name] for name in names])
    assert (texts @ images.T).argmax(axis=1).tolist() == [0, 1, 2, 3, 4]


def test_nothing_gives_no_rows(retriever: Retriever) -> None:
    for rows in (retriever.embed_images([]), retriever.embed_texts([])):
        assert (rows.shape, rows.dtype) == ((0, 8), np.dtype(np.float32))


def test_one_instead_of_several_is_refused(retriever: Retriever, toy_images: Images) -> None:
    with pytest.raises(UsageError, match="one str"):
        retriever.embed_texts("a red field")
    with pytest.raises(UsageError, match="one str"):
        retriever.embed_images("photo.jpg")
    with pytest.raises(UsageError, match="must be a string"):
        retriever.embed_texts([None])  # type: ignore[list-item]
    with pytest.raises(ImageError):
        retriever.embed_images([toy_images["red"], b""])


def test_a_long_text_is_read_to_its_end_in_windows(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = retriever.bundle.manifest.vocabulary.max_text_tokens
    windows: list[list[int]] = []
    embed = TextGraph.embed
    monkeypatch.setattr(TextGraph, "embed", lambda self, ids: windows.append(list(ids)) or embed(self, ids))
    red, blue = "a red field on a red wall. " * 4, "a blue sky near a blue sky. " * 4
    [row] = retriever.embed_texts([red + blue])
    tokenizer = retriever._engine.tokenizer
    assert len(windows) >= 2
    assert max(map(len, windows)) <= room
    assert all((ids[0], ids[-1]) == (tokenizer.start_id, tokenizer.end_id) for ids in windows)
    assert [piece for ids in windows for piece in ids[1:-1]] == tokenizer.encode(red + blue)[1:-1]
    # The mean of the windows, made unit length again, with numpy alone.
    graph = retriever._engine.text()
    mean = np.mean([graph.embed(ids) for ids in windows[:]], axis=0)
    assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)
    # A text that was cut off at the limit would know red only.
    assert (
        row @ retriever.embed_texts(["a blue sky"])[0]
        > retriever.embed_texts([red])[0] @ (retriever.embed_texts(["a blue sky"])[0])
    )


def test_a_text_of_just_the_limit_is_one_window(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = retriever.bundle.manifest.vocabulary.max_text_tokens - 2
    calls: list[int] = []
    embed = TextGraph.embed
    monkeypatch.setattr(TextGraph, "embed", lambda self, ids: calls.append(len(ids)) or embed(self, ids))
    retriever.embed_texts(["red " * room])
    assert calls == [room + 2]
    retriever.embed_texts(["red " * (room + 1)])
    assert len(calls) == 3


@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_windows_are_few_even_and_between_words(room: int, generator: np.random.Generator) -> None:
    for _ in range(200):
        count = int(generator.integers(1, 40))
        pieces = list(range(count))
        joins = [place > 0 and bool(generator.random() < 0.4) for place in pieces]
        windows = list(share_out(pieces, joins, room))
        assert [piece for window in windows for piece in window] == pieces
        assert all(1 <= len(window) <= room for window in windows)
        assert len(windows) == -(-count // room)
    assert list(share_out(range(6), [False] * 6, 4)) == [[0, 1, 2], [3, 4, 5]]
    assert list(share_out(range(6), [False, False, False, True, False, False], 4)) == [[0, 1], [2, 3, 4, 5]]


def test_a_captioner_alone_is_no_retriever(tiny_bundle: Path, tmp_path: Path) -> None:
    with open_bundle(tiny_bundle) as bundle:
        fields = bundle.manifest.to_fields()
        fields["kind"] = ["captioner"]
        fields["graphs"] = [graph for graph in fields["graphs"] if graph["role"] != "text"]
        with staged_bundle(tmp_path / "half") as scratch:
            names = [name for name in bundle.manifest.files if name != "text.onnx"]
            write_bundle(scratch, fields, {name: bundle.path(name) for name in names})
    with pytest.raises(BundleError, match="is a captioner, and a retriever is needed"):
        Retriever.open(tmp_path / "half")


def test_use_after_close_says_so(tiny_bundle: Path) -> None:
    retriever = Retriever.open(tiny_bundle)
    retriever.close()
    retriever.close()
    calls: list[Callable[[], Any]] = [
        lambda: retriever.embed_texts([]),
        lambda: retriever.embed_images([]),
        lambda: retriever.look(b""),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="open another"):
            call()


@pytest.mark.parametrize(
    "answer", [np.zeros((1, 8)), np.full((1, 8), np.nan), np.ones((2, 8)), np.ones(8)], ids=str
)
def test_an_embedding_that_is_none_is_refused(answer: np.ndarray) -> None:
    with pytest.raises(BackendError, match="text graph gave an embedding"):
        unit_rows(answer, 1, "text")
