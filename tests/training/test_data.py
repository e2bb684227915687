from __future__ import annotations

import json
from pathlib import Path

import pytest

from tellapart.errors import DataError
from tellapart_training.data import (
    CaptionRecord,
    ReadReport,
    normalise_caption,
    normalised_records,
    read_captions,
    split_records,
)


@pytest.mark.parametrize(
    ("written", "learnt"),
    [
        ("A child in a pink dress is climbing up stairs .", "a child in a pink dress is climbing up stairs"),
        ("A black dog and a tri-colored dog ,  playing .", "a black dog and a tri-colored dog, playing"),
        ("The dog 's owner isn't here!", "the dog's owner isn't here"),
        ('A sign that says " active . "', "a sign that says active"),
        ("Closeup of football player # 25 .", "closeup of football player 25"),
        ("a man - with a hat - sits", "a man with a hat sits"),
        ("The dogs ' toys", "the dogs toys"),
        ("an at&t headphone, black/white", "an at&t headphone, black/white"),
        ("  , ; .", ""),
        ("caf\u00e9 on the 3rd street", "caf\u00e9 on the 3rd street"),
    ],
)
def test_captions_are_normalised(written: str, learnt: str) -> None:
    assert normalise_caption(written) == learnt
    assert normalise_caption(learnt) == learnt


def _json_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


GOOD = json.dumps({"image": "a.jpg", "split": "train", "captions": ["One dog.", "Two dogs."]})


def test_json_lines_are_read_and_blank_lines_ignored(tmp_path: Path) -> None:
    path = _json_lines(tmp_path / "c.jsonl", [GOOD, "", '{"image_id": 7, "captions": ["a cat"]}'])
    assert read_captions(path) == [
        CaptionRecord("a.jpg", "train", ("One dog.", "Two dogs.")),
        CaptionRecord("7", "", ("a cat",)),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"image": "b.jpg", "captions": ["x"', "not JSON"),
        ("[1, 2]", "expected an object"),
        ('{"captions": ["x"]}', "'image' must be a file name, got None"),
        ('{"image": "b.jpg", "captions": []}', "'captions' must be a list"),
        ('{"image": "b.jpg", "captions": "x"}', "'captions' must be a list"),
        ('{"image": "b.jpg", "captions": ["x", ""]}', "not empty"),
        ('{"image": "b.jpg", "captions": [3]}', "must be text"),
        ('{"image": "b.jpg", "split": 3, "captions": ["x"]}', "'split' must be text"),
        (GOOD, "already on line 1"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path, line: str, problem: str) -> None:
    path = _json_lines(tmp_path / "c.jsonl", [GOOD, line])
    with pytest.raises(DataError) as caught:
        read_captions(path)
    assert f"{path}:2: " in str(caught.value)
    assert problem in str(caught.value)
    assert "bad_lines" in str(caught.value)
    report = ReadReport()
    assert len(read_captions(path, bad_lines="skip", report=report)) == 1
    assert report.bad_lines[0].startswith(f"{path}:2: ")
    assert "1 bad lines skipped" in report.summary()


def test_coco_karpathy_and_flickr_files_give_the_same_records(tmp_path: Path) -> None:
    coco = tmp_path / "coco.json"
    notes = [
        {"image_id": 1, "caption": "one"},
        {"image_id": 2, "caption": "two"},
        {"image_id": 1, "caption": "uno"},
    ]
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    coco.write_text(json.dumps({"images": images, "annotations": notes}), encoding="utf-8")
    karpathy = tmp_path / "karpathy.json"
    entries = [
        {"filename": "1.jpg", "split": "val", "sentences": [{"raw": "one"}, {"raw": "uno"}]},
        {"filename": "2.jpg", "split": "val", "sentences": [{"raw": "two"}]},
    ]
    karpathy.write_text(json.dumps({"images": entries, "dataset": "toy"}), encoding="utf-8")
    flickr = tmp_path / "tokens.txt"
    flickr.write_text("1.jpg#0\tone\n1.jpg#1\tuno\n2.jpg#0\ttwo\n", encoding="utf-8")
    expected = [("1.jpg", ("one", "uno")), ("2.jpg", ("two",))]
    for path in (coco, karpathy, flickr):
        assert [(record.image, record.captions) for record in read_captions(path)] == expected
    assert {record.split for record in read_captions(karpathy)} == {"val"}


def test_bad_entries_of_the_other_kinds_are_named(tmp_path: Path) -> None:
    flickr = tmp_path / "tokens.txt"
    flickr.write_text("1.jpg#0\tone\n1.jpg uno\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"tokens\.txt:2: expected name\.jpg#0<TAB>caption"):
        read_captions(flickr)
    coco = tmp_path / "coco.json"
    broken = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 9, "caption": "x"}]}
    coco.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(DataError, match=r"coco\.json:1: entry of 'annotations'"):
        read_captions(coco)


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read captions"):
        read_captions(tmp_path / "absent.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no captions"):
        read_captions(empty)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"image": "caf\xe9"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_captions(latin)


def test_short_captions_and_images_left_without_any_are_dropped_and_counted() -> None:
    records = [CaptionRecord("a", "train", ("A dog runs .", "A")), CaptionRecord("b", "train", ("broken",))]
    report = ReadReport()
    kept = normalised_records(records, min_words=2, report=report)
    assert kept == [CaptionRecord("a", "train", ("a dog runs",))]
    assert report.short_captions == 2


def test_the_held_back_slice_depends_on_the_seed_and_not_on_the_order() -> None:
    records = [CaptionRecord(f"{index}", "train", ("x y",)) for index in range(50)]
    records += [CaptionRecord("v", "val", ("x y",))]
    train, tuning = split_records(records, train_splits=("train",), tuning_images=10, seed=1)
    assert (len(train), len(tuning)) == (40, 10)
    assert not {record.image for record in train} & {record.image for record in tuning}
    assert "v" not in {record.image for record in [*train, *tuning]}
    _, again = split_records(records[::-1], train_splits=("train",), tuning_images=10, seed=1)
    assert {record.image for record in again} == {record.image for record in tuning}
    _, other = split_records(records, train_splits=("train",), tuning_images=10, seed=2)
    assert {record.image for record in other} != {record.image for record in tuning}
    with pytest.raises(DataError, match=r"hold 1 images, .*splits 'train', 'val'"):
        split_records(records, train_splits=("val",), tuning_images=1, seed=1)
