"""Writing: whole or not at all, and never over something else."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from tellapart import bundle_place
from tellapart.bundle import open_bundle, publish_bundle, staged_bundle, write_bundle
from tellapart.errors import BundleError, BundleIntegrityError, ManifestError


@pytest.fixture
def fields(tiny_bundle):
    """Manifest fields of the tiny bundle, as an exporter would give them."""
    page = json.loads((tiny_bundle / "tellapart.json").read_text())
    del page["files"], page["format_version"]
    return page


@pytest.fixture
def files(tiny_bundle):
    """Its files, one as bytes and the others to be copied."""
    found: dict[str, bytes | Path] = {
        path.name: path for path in tiny_bundle.iterdir() if path.name != "tellapart.json"
    }
    found["vocab.txt"] = (tiny_bundle / "vocab.txt").read_bytes()
    return found


@pytest.fixture
def place(tmp_path):
    """An empty folder to write into."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def test_a_written_bundle_equals_the_one_it_was_made_from(fields, files, place, tiny_bundle):
    with staged_bundle(place / "out") as scratch:
        assert scratch.parent.parent == place
        shutil.copy(files.pop("text.onnx"), scratch / "text.onnx")  # as an exporter writes a graph
        write_bundle(scratch, fields, files)
        assert not (place / "out").exists()
    assert os.listdir(place) == ["out"]
    with open_bundle(place / "out") as mine, open_bundle(tiny_bundle) as theirs:
        assert mine.sha256 == theirs.sha256


def test_a_manifest_can_be_written_again_with_a_report(files, place, tiny_bundle):
    with open_bundle(tiny_bundle) as source, staged_bundle(place / "out") as scratch:
        write_bundle(scratch, source.manifest, files)
        with open_bundle(scratch) as trial:
            page = {**trial.manifest.to_fields(), "metrics": {"cider": 0.5}, "precision": "int8"}
        write_bundle(scratch, page, {"notes/report.md": b"fine\n"})
    with open_bundle(place / "out") as bundle:
        assert bundle.manifest.metrics == {"cider": 0.5}
        assert bundle.manifest.precision == "int8"
        assert bundle.read_bytes("notes/report.md") == b"fine\n"


def test_a_zip_is_uncompressed_and_the_same_every_time(fields, files, place):
    for name in ("a.zip", "b.zip"):
        with staged_bundle(place / name) as scratch:
            write_bundle(scratch, fields, files)
    assert (place / "a.zip").read_bytes() == (place / "b.zip").read_bytes()
    assert sorted(os.listdir(place)) == ["a.zip", "b.zip"]
    with zipfile.ZipFile(place / "a.zip") as opened:
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}
        assert opened.namelist()[-1] == "tellapart.json"
    with open_bundle(place / "a.zip") as bundle:
        assert bundle.manifest.name == "tiny"


@pytest.mark.parametrize("name", ["out", "out.zip"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(name, error, fields, files, place):
    with pytest.raises(error, match="power cut"), staged_bundle(place / name) as scratch:  # noqa: PT012
        write_bundle(scratch, fields, files)
        raise error("power cut")
    assert os.listdir(place) == []


def test_a_scratch_folder_that_is_not_whole_is_not_published(fields, files, place):
    with pytest.raises(BundleIntegrityError, match=r"has no tellapart.json"), staged_bundle(place / "out"):
        pass
    with (  # noqa: PT012 - the error comes when the inner block ends
        pytest.raises(BundleIntegrityError, match=r"'late\.txt' is not listed"),
        staged_bundle(place / "out") as scratch,
    ):
        write_bundle(scratch, fields, files)
        (scratch / "late.txt").write_text("too late")
    assert os.listdir(place) == []


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_what_is_there_stays_unless_overwriting_is_asked_for(name, fields, files, place):
    with staged_bundle(place / name) as scratch:
        write_bundle(scratch, fields, files)
    with open_bundle(place / name) as before:
        first = before.sha256
    with pytest.raises(BundleError, match="exists; choose another name"), staged_bundle(place / name):
        pytest.fail("the block must not even begin")
    # A failed attempt to overwrite changes nothing.
    with pytest.raises(RuntimeError), staged_bundle(place / name, overwrite=True) as scratch:
        raise RuntimeError
    with open_bundle(place / name) as same:
        assert same.sha256 == first
    with staged_bundle(place / name, overwrite=True) as scratch:
        write_bundle(scratch, {**fields, "name": "second"}, files)
    with open_bundle(place / name) as after:
        assert after.manifest.name == "second"
    assert os.listdir(place) == [name]


@pytest.mark.parametrize("call", [1, 2])
def test_a_swap_that_fails_half_way_brings_the_old_one_back(call, fields, files, place, monkeypatch):
    with staged_bundle(place / "out") as scratch:
        write_bundle(scratch, fields, files)
    rename, calls = os.rename, []

    def fail(*paths):
        calls.append(paths)
        if len(calls) == call:
            raise OSError(28, "no space left")
        rename(*paths)

    monkeypatch.setattr(bundle_place.os, "rename", fail)
    with (
        pytest.raises(BundleError, match="no space left"),
        staged_bundle(place / "out", overwrite=True) as scratch,
    ):
        write_bundle(scratch, {**fields, "name": "second"}, files)
    with open_bundle(place / "out") as bundle:
        assert bundle.manifest.name == "tiny"
    assert os.listdir(place) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_a_bundle_is_never_overwritten(overwrite, place):
    (place / "photos").mkdir()
    (place / "photos" / "a.jpg").write_bytes(b"x")
    (place / "file.txt").write_bytes(b"x")
    for name in ("photos", "file.txt"):
        with (
            pytest.raises(BundleError, match=r"exists|is not a bundle"),
            staged_bundle(place / name, overwrite=overwrite),
        ):
            pytest.fail("the block must not even begin")
    assert (place / "photos" / "a.jpg").exists()


def test_a_missing_folder_is_said_before_any_work(place):
    with (
        pytest.raises(BundleError, match="does not exist; make it first"),
        staged_bundle(place / "a" / "out"),
    ):
        pytest.fail("the block must not even begin")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": ["painter"]}, "kind must be"),
        ({"metrics": {"a": float("nan")}}, "not plain JSON values"),
        ({"metrics": {"a": {1, 2}}}, "not plain JSON values"),
        ({"colour": "red"}, "colour is not a known key"),
    ],
)
def test_fields_that_make_no_manifest_leave_no_manifest(change, words, fields, files, place):
    write_bundle(place, fields, files)
    with pytest.raises(ManifestError, match=words):
        write_bundle(place, {**fields, **change})
    assert not (place / "tellapart.json").exists()


def test_files_cannot_be_put_outside(fields, place):
    with pytest.raises(ManifestError, match="must not have"):
        write_bundle(place, fields, {"../outside.txt": b"x"})
    assert not (place.parent / "outside.txt").exists()


def test_a_link_among_the_files_is_refused(fields, files, place, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (place / "linked").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleIntegrityError, match="link"):
        write_bundle(place, fields, files)


def test_publish_moves_a_finished_folder(fields, files, place):
    (place / "work").mkdir()
    write_bundle(place / "work", fields, files)
    publish_bundle(place / "work", place / "out")
    assert os.listdir(place) == ["out"]


def test_arguments_are_not_changed(fields, files, place):
    before = json.dumps(fields), dict(files)
    write_bundle(place, fields, files)
    assert (json.dumps(fields), files) == before
