"""The benchmark on disk: as published, as we write it, and everything that is refused."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tellapart import truematch_files
from tellapart.errors import DataError, TellapartError, UsageError
from tellapart.truematch import captions_of, image_name, read_benchmark, read_captions_file, write_benchmark
from tellapart.truematch_images import BenchmarkImages, images_place

# What `pickle.dumps({1: "a dog"}, protocol=4)` gives; written out, as nothing here may need pickle.
PICKLED = b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00}\x94K\x01\x8c\x05a dog\x94s."


@pytest.fixture
def published(tmp_path):
    """As published: bare lists of bags of COCO ids, and a file of size 1 that is passed over."""
    folder = tmp_path / "TrueMatch"
    (folder / "benchmark").mkdir(parents=True)
    (folder / "benchmark" / "3.json").write_text("[[42, 7, 391895], [1, 2, 3]]")
    (folder / "benchmark" / "5.json").write_text("[[10, 11, 12, 13, 42]]")
    (folder / "benchmark" / "1.json").write_text("[[42]]")
    (folder / "benchmark" / "notes.txt").write_text("not ours")
    return folder


def test_the_published_format_is_read(published):
    found = read_benchmark(published)
    assert found.bags == {3: ((42, 7, 391895), (1, 2, 3)), 5: ((10, 11, 12, 13, 42),)}
    assert (found.rd100, found.facts, found.name) == ((), {}, "TrueMatch")
    assert found.ids() == (42, 7, 391895, 1, 2, 3, 10, 11, 12, 13)
    # The folder of the lists themselves will do, and a lost space changes nothing.
    (published / "benchmark" / "5.json").write_text("[[10,11,12,13,42]]")
    assert read_benchmark(published / "benchmark").sha256 == found.sha256
    (published / "benchmark" / "5.json").write_text("[[11,10,12,13,42]]")
    assert read_benchmark(published).sha256 != found.sha256


def test_a_quick_look_keeps_the_name_and_hash(published):
    found = read_benchmark(published)
    less = found.limited(1)
    assert less.bags[3] == ((42, 7, 391895),)
    assert less.sha256 == found.sha256
    with pytest.raises(UsageError, match="at least one bag"):
        found.limited(0)


def test_published_ids_are_names_of_coco_files():
    assert image_name(391895) == "COCO_val2014_000000391895.jpg"
    assert image_name("photos/a.jpg") == "photos/a.jpg"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "expected JSON"),
        ("[[1, 2, 3]", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ('{"bags": []}', "expected a list of bags"),
        ("[1, 2, 3]", "expected a list of bags"),
        ("[]", "no bags inside"),
        ("[[1, 2]]", "bag 0 has 2 images, expected 3"),
        ("[[1, 2, 3], [4, 5, 6, 7]]", "bag 1 has 4 images"),
        ("[[1, 2, 1]]", "an image twice"),
        ("[[1, 2, true]]", "holds True"),
        ("[[1, 2, 3.0]]", "holds 3.0"),
        ("[[1, 2, null]]", "holds None"),
        ("[[1, 2, -3]]", "holds -3"),
        ("[[1, 2, 1000000000000]]", "12 digits"),
        ('[[1, 2, "a.jpg"]]', "use one kind"),
        ('[["a.jpg", "b.jpg", "../../etc/passwd"]]', "empty parts"),
        ('[["a.jpg", "b.jpg", "/etc/passwd"]]', "absolute"),
        ('[["a.jpg", "b.jpg", ""]]', "is empty"),
    ],
)
def test_bags_that_are_wrong_are_data_errors(content, words, published):
    (published / "benchmark" / "3.json").write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        read_benchmark(published)
    assert "3.json" in str(caught.value)


def test_a_pickle_is_named_and_refused(published, tmp_path):
    (published / "benchmark" / "3.json").write_bytes(PICKLED)
    with pytest.raises(DataError, match="pickle, which can run code"):
        read_benchmark(published)
    for name in ("captions.json", "captions.pkl"):
        (tmp_path / name).write_bytes(PICKLED)
        with pytest.raises(DataError, match="pickle, which can run code"):
            read_captions_file(tmp_path / name)
    (tmp_path / "text.pickle").write_text("{}")
    with pytest.raises(DataError, match="pickle"):
        read_captions_file(tmp_path / "text.pickle")


def test_damage_is_answered_or_refused_and_nothing_else(published, generator):
    path = published / "benchmark" / "3.json"
    content = path.read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(int(generator.integers(1, 4))):
            damaged[int(generator.integers(len(damaged)))] = int(generator.integers(256))
        path.write_bytes(damaged)
        try:
            read_benchmark(published)
        except TellapartError:
            refused += 1
    assert refused > 100


def test_a_folder_without_bags_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no bags"):
        read_benchmark(tmp_path)
    with pytest.raises(DataError, match="check the path"):
        read_benchmark(tmp_path / "absent")


BAGS = {3: [["a.jpg", "b.jpg", "c.jpg"]], 2: [["a.jpg", "c.jpg"], ["b.jpg", "d/e.jpg"]]}


def test_what_is_written_is_read_back(tmp_path):
    groups = [[f"{number}.jpg" for number in range(100)]]
    written = write_benchmark(
        tmp_path / "ours", bags=BAGS, rd100=groups, facts={"name": "TrueMatch-style", "seed": 3}
    )
    found = read_benchmark(tmp_path / "ours")
    assert found == written
    assert list(found.bags) == [2, 3]
    assert found.bags[2] == (("a.jpg", "c.jpg"), ("b.jpg", "d/e.jpg"))
    assert found.rd100 == (tuple(groups[0]),)
    assert (found.name, found.facts["seed"]) == ("TrueMatch-style", 3)
    assert len(found.ids(rd100=True)) == 104
    # The published reader knows nothing of ours: a bare list of lists.
    assert json.loads((tmp_path / "ours" / "benchmark" / "3.json").read_text()) == BAGS[3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def test_bags_changed_after_the_fact_are_noticed(tmp_path):
    write_benchmark(tmp_path / "ours", bags=BAGS)
    (tmp_path / "ours" / "benchmark" / "3.json").write_text('[["a.jpg", "b.jpg", "d.jpg"]]')
    with pytest.raises(DataError, match="not that of the bags"):
        read_benchmark(tmp_path / "ours")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("[]", '"format": 1'),
        ('{"format": 2}', '"format": 1'),
        ('{"format": 1, "rd100": [[1, 2]]}', "expected 100"),
        ('{"format": 1, "format": 1}', "comes twice"),
    ],
)
def test_a_wrong_page_is_a_data_error(page, words, published):
    (published / "benchmark.json").write_text(page)
    with pytest.raises(DataError, match=words):
        read_benchmark(published)


def test_an_image_in_two_groups_is_no_permutation(tmp_path):
    group = list(range(100))
    with pytest.raises(DataError, match="two groups"):
        write_benchmark(tmp_path / "ours", bags=BAGS, rd100=[group, group])


def test_nothing_is_replaced_unasked_and_only_a_benchmark_ever(tmp_path):
    out = tmp_path / "ours"
    first = write_benchmark(out, bags=BAGS)
    with pytest.raises(UsageError, match="--force"):
        write_benchmark(out, bags={2: BAGS[2]})
    assert read_benchmark(out) == first
    assert list(write_benchmark(out, bags={2: BAGS[2]}, overwrite=True).bags) == [2]
    (out / "truematch_images").mkdir()
    with pytest.raises(UsageError, match="holds more than a benchmark"):
        write_benchmark(out, bags=BAGS, overwrite=True)
    assert (out / "truematch_images").is_dir()
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "benchmark.png").write_bytes(b"precious")
    with pytest.raises(UsageError, match="holds more than a benchmark"):
        write_benchmark(photos, bags=BAGS, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no folder"):
        write_benchmark(tmp_path / "file", bags=BAGS, overwrite=True)
    with pytest.raises(UsageError, match="does not exist"):
        write_benchmark(tmp_path / "absent" / "ours", bags=BAGS)


def test_a_write_that_is_broken_off_leaves_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "ours"
    first = write_benchmark(out, bags=BAGS)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(truematch_files, "sync_tree", interrupted)
    for goal in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            write_benchmark(goal, bags={2: BAGS[2]}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    assert read_benchmark(out) == first


def test_captions_are_read_by_id(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text('{"42": " a dog \\n", "7": "a cat", "9": ""}')
    captions = read_captions_file(path)
    assert captions_of([7, 42], captions) == ["a cat", "a dog"]
    with pytest.raises(DataError, match=r"2 of 3 images have no caption: 8, b\.jpg"):
        captions_of([42, 8, "b.jpg"], captions)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "image id"),
        ("{}", "image id"),
        ('{"1": 5}', "must be a text"),
        ('{"1": ["a", "b"]}', "must be a text"),
        ('{"1": "a", "1": "b"}', "'1' comes twice"),
        ("{'1': 'a'}", "expected JSON"),
    ],
)
def test_captions_that_are_wrong_are_data_errors(content, words, tmp_path):
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(DataError, match=words):
        read_captions_file(tmp_path / "captions.json")


@pytest.fixture
def photos(tmp_path):
    """A folder with two photos of one name, and the same without the second in a tar."""
    folder = tmp_path / "photos"
    for name, value in (
        ("COCO_val2014_000000000042.jpg", 0),
        ("x/a.png", 90),
        ("x/b.png", 160),
        ("y/b.png", 250),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(folder / name)
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in ("COCO_val2014_000000000042.jpg", "x/a.png", "x/b.png"):
            archive.add(folder / name, f"Images/{name}")
    return folder


def test_photos_are_found_in_a_folder_and_in_a_tar(photos, tmp_path):
    with BenchmarkImages(photos) as images:
        images.require([42, "a.png", "x/b.png", "y/b.png"])
        assert images.encoded(42) == photos / "COCO_val2014_000000000042.jpg"
        assert images.encoded("a.png") == photos / "x" / "a.png"
        with pytest.raises(DataError, match=r"2 of 3 photos are missing .*: b\.png, c\.png"):
            images.require(["a.png", "b.png", "c.png"])
        with pytest.raises(DataError, match="--images"):
            images.encoded(43)
    with BenchmarkImages(tmp_path / "photos.tar") as images:
        assert images.encoded(42) == (photos / "COCO_val2014_000000000042.jpg").read_bytes()
        assert images.encoded("b.png") == (photos / "x" / "b.png").read_bytes()


def test_where_photos_are_looked_for(photos, tmp_path):
    ours = write_benchmark(tmp_path / "ours", bags=BAGS, facts={"images": "../photos"})
    assert images_place(ours) == tmp_path / "ours" / ".." / "photos"
    (tmp_path / "ours" / "truematch_images").mkdir()
    assert images_place(ours) == tmp_path / "ours" / "truematch_images"
    assert images_place(ours, photos) == photos
    lost = write_benchmark(tmp_path / "lost", bags=BAGS, facts={"images": "../gone.tar"})
    with pytest.raises(UsageError, match=r"nor at '\.\./gone\.tar'"):
        images_place(lost)
