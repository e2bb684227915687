"""The index of a folder: what is embedded when, what survives on disk, and what is found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart import Retriever, RuntimeOptions, ShapeError, UsageError
from tellapart.search import ImageIndex, default_cache_dir, list_images, open_index

Images = dict[str, np.ndarray]


@pytest.fixture
def retriever(tiny_bundle: Path) -> Iterator[Retriever]:
    with Retriever.open(tiny_bundle) as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path, toy_images: Images) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    for name, place in (("red", "red.png"), ("green", "deep/Green.PNG"), ("blue", "deep/er/blue.jpg")):
        Image.fromarray(toy_images[name]).save(folder / place)
    (folder / "notes.txt").write_text("no image by its name")
    (folder / ".hidden.png").write_bytes(b"hidden")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(index: ImageIndex) -> list[str]:
    return list(index.names)


def test_a_sentence_finds_its_picture(retriever: Retriever, photos: Path, cache: Path) -> None:
    index = open_index(photos, retriever, cache_dir=cache)
    assert names(index) == ["deep/Green.PNG", "deep/er/blue.jpg", "red.png"]
    for colour, name in (("red", "red.png"), ("blue", "deep/er/blue.jpg"), ("green", "deep/Green.PNG")):
        matches = retriever.search(f"a {colour} field", index, top=2)
        assert len(matches) == 2
        assert matches[0].name == name
        assert matches[0].path == photos / name
        assert 1 >= matches[0].score > matches[1].score >= -1
    assert len(retriever.search("red", index, top=50)) == 3


def test_the_second_time_nothing_is_embedded(retriever: Retriever, photos: Path, cache: Path) -> None:
    before = sorted(photos.rglob("*"))
    steps: list[tuple[int, int]] = []
    first = open_index(photos, retriever, cache_dir=cache, progress=lambda *step: steps.append(step))
    second = open_index(photos, retriever, cache_dir=cache, progress=lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert (first.embedded, second.embedded) == (3, 0)
    assert (first.rows == second.rows).all()
    assert first.names == second.names
    assert sorted(photos.rglob("*")) == before  # nothing is written into the folder itself
    assert len(list(cache.iterdir())) == 1


def test_only_what_changed_is_embedded_again(
    retriever: Retriever, photos: Path, cache: Path, toy_images: Images
) -> None:
    open_index(photos, retriever, cache_dir=cache)
    Image.fromarray(toy_images["white"]).save(photos / "new.png")
    assert open_index(photos, retriever, cache_dir=cache).embedded == 1
    (photos / "red.png").unlink()
    gone = open_index(photos, retriever, cache_dir=cache)
    assert (gone.embedded, names(gone)) == (0, ["deep/Green.PNG", "deep/er/blue.jpg", "new.png"])
    # Same name, other picture: the size may stay, the time does not.
    Image.fromarray(toy_images["black"]).save(photos / "new.png")
    os.utime(photos / "new.png", ns=(1, 1))
    changed = open_index(photos, retriever, cache_dir=cache)
    assert changed.embedded == 1
    assert retriever.search("a black field", changed, top=1)[0].name == "new.png"


def test_bad_images_are_named_once_and_tried_again_when_they_change(
    retriever: Retriever, photos: Path, cache: Path, toy_images: Images
) -> None:
    (photos / "bad.jpg").write_text("not a photo")
    (photos / "lost.png").symlink_to(photos / "nowhere.png")
    for embedded in (5, 0):
        index = open_index(photos, retriever, cache_dir=cache)
        assert index.embedded == embedded
        assert len(index.names) == 3
        assert list(index.failures) == ["bad.jpg", "lost.png"]
        assert "bad.jpg" in index.failures["bad.jpg"]
    Image.fromarray(toy_images["black"]).save(photos / "bad.jpg")
    index = open_index(photos, retriever, cache_dir=cache)
    assert (index.embedded, list(index.failures)) == (1, ["lost.png"])
    assert "bad.jpg" in index.names


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle", "shape", "page"])
def test_a_damaged_cache_is_made_again(
    retriever: Retriever, photos: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    sound = open_index(photos, retriever, cache_dir=cache)
    [path] = cache.iterdir()
    with np.load(path) as archive:
        page, rows = archive["page"], archive["rows"]
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "text":
        path.write_text("no archive")
    elif damage == "pickle":
        np.savez(path, page=page, rows=np.array([{"a": 1}], object))
    elif damage == "shape":
        np.savez(path, page=page, rows=rows[:, :3])
    else:
        np.savez(path, page=page[:-5], rows=rows)
    again = open_index(photos, retriever, cache_dir=cache)
    assert again.embedded == 3
    assert (again.rows == sound.rows).all()
    assert "is made again" in caplog.text
    assert open_index(photos, retriever, cache_dir=cache).embedded == 0


def test_an_interrupted_index_keeps_what_it_has(retriever: Retriever, photos: Path, cache: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_index(photos, retriever, cache_dir=cache, progress=interrupt)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    assert open_index(photos, retriever, cache_dir=cache).embedded == 1


def test_a_cache_that_cannot_be_written_costs_only_time(
    retriever: Retriever, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        index = open_index(photos, retriever, cache_dir=tmp_path / "file" / "cache")
        assert (index.embedded, len(index.names)) == (3, 3)
    assert "could not be kept" in caplog.text


def test_folder_and_bundle_have_an_index_each(
    retriever: Retriever, photos: Path, cache: Path, tmp_path: Path
) -> None:
    open_index(photos, retriever, cache_dir=cache)
    shutil.copytree(photos, tmp_path / "copy")
    assert open_index(tmp_path / "copy", retriever, cache_dir=cache).embedded == 3
    assert len(list(cache.iterdir())) == 2
    index = open_index(photos, retriever, cache_dir=cache)
    foreign = ImageIndex(
        folder=index.folder, names=index.names, rows=index.rows, failures={}, model_sha256="0" * 64
    )
    with pytest.raises(UsageError, match="made by bundle 000000000000"):
        retriever.search("red", foreign)


def test_an_empty_folder_finds_nothing(retriever: Retriever, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "none").mkdir()
    index = open_index(tmp_path / "none", retriever, cache_dir=cache)
    assert index.rows.shape == (0, 8)
    assert retriever.search("red", index) == ()
    with pytest.raises(UsageError, match="not a folder"):
        open_index(tmp_path / "nowhere", retriever, cache_dir=cache)
    with pytest.raises(UsageError, match="top"):
        retriever.search("red", index, top=0)
    with pytest.raises(ShapeError):
        index.nearest(np.zeros(3, np.float32))


def test_equal_scores_keep_the_order_of_names(tmp_path: Path) -> None:
    rows = np.array([[0, 1], [1, 0], [1, 0], [1, 0]], np.float32)
    index = ImageIndex(folder=tmp_path, names=("a", "b", "c", "d"), rows=rows, failures={}, model_sha256="")
    assert [match.name for match in index.nearest(np.array([1, 0], np.float32), top=3)] == ["b", "c", "d"]


def test_the_cache_lies_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "tellapart"
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", "/home/somebody")
        assert default_cache_dir() == Path("/home/somebody/.cache/tellapart")


def test_links_to_folders_are_not_followed(photos: Path) -> None:
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    assert list_images(photos) == ["deep/Green.PNG", "deep/er/blue.jpg", "red.png"]


def test_workers_make_the_same_index(
    tiny_bundle: Path, photos: Path, cache: Path, tmp_path: Path, toy_images: Images
) -> None:
    for number, image in enumerate([*toy_images.values()] * 3):
        Image.fromarray(image).save(photos / f"{number:02}.png")
    (photos / "broken.png").write_bytes(b"broken")
    with Retriever.open(tiny_bundle, runtime=RuntimeOptions(threads=1)) as retriever:
        steps: list[tuple[int, int]] = []
        many = open_index(
            photos, retriever, cache_dir=cache, workers=4, progress=lambda *step: steps.append(step)
        )
        one = open_index(photos, retriever, cache_dir=tmp_path / "other")
        with pytest.raises(UsageError, match="workers"):
            open_index(photos, retriever, cache_dir=cache, workers=0)
    assert many.names == one.names
    assert (many.rows == one.rows).all()
    assert many.failures == one.failures
    assert list(many.failures) == ["broken.png"]
    assert steps == [(done, many.embedded) for done in range(1, many.embedded + 1)]
