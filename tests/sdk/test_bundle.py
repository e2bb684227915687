"""Opening: nothing is believed before it was proved, in a folder and in a zip."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import warnings
import zipfile
from pathlib import Path

import pytest

from tellapart import bundle as bundle_module
from tellapart.bundle import open_bundle, verify_files
from tellapart.errors import (
    BundleError,
    BundleIntegrityError,
    BundleVersionError,
    ClosedError,
    ManifestError,
)


@pytest.fixture
def copied(tiny_bundle, tmp_path):
    """A copy of the tiny bundle, free to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


@pytest.fixture
def private_temp(tmp_path, monkeypatch):
    """An empty folder where all temporary files go, to see what stays behind."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def zip_of(folder, archive, *, compression=zipfile.ZIP_STORED, skip=()):
    with zipfile.ZipFile(archive, "w", compression) as opened:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name not in skip:
                opened.write(path, path.relative_to(folder).as_posix())
    return archive


def edit_manifest(folder, change):
    path = folder / "tellapart.json"
    page = json.loads(path.read_text())
    change(page)
    path.write_text(json.dumps(page))


def test_opens_a_folder(tiny_bundle):
    with open_bundle(tiny_bundle) as bundle:
        assert bundle.manifest.name == "tiny"
        assert bundle.path("vocab.txt").read_bytes() == bundle.read_bytes("vocab.txt")
        assert bundle.graph("text").file == "text.onnx"
        assert bundle.sha256 == hashlib.sha256((tiny_bundle / "tellapart.json").read_bytes()).hexdigest()
    assert (tiny_bundle / "tellapart.json").exists()


def test_opens_a_zip_and_removes_its_copies(tiny_bundle, tmp_path, private_temp):
    archive = zip_of(tiny_bundle, tmp_path / "tiny.zip")
    with open_bundle(archive) as zipped, open_bundle(str(tiny_bundle)) as plain:
        assert zipped.sha256 == plain.sha256
        assert zipped.read_bytes("vision.onnx") == plain.read_bytes("vision.onnx")
        if os.name == "posix":
            assert stat.S_IMODE(zipped.root.stat().st_mode) == 0o700
        assert len(list(private_temp.iterdir())) == 1
    assert list(private_temp.iterdir()) == []


def test_a_zip_with_entries_for_its_folders_opens(copied, tmp_path, private_temp):
    def move(page):
        page["files"]["docs/MODEL_CARD.md"] = page["files"].pop("MODEL_CARD.md")

    (copied / "docs").mkdir()
    (copied / "MODEL_CARD.md").rename(copied / "docs" / "MODEL_CARD.md")
    edit_manifest(copied, move)
    with zipfile.ZipFile(zip_of(copied, tmp_path / "a.zip"), "a") as opened:
        opened.writestr("docs/", b"")
    with open_bundle(tmp_path / "a.zip") as bundle, open_bundle(copied) as plain:
        assert bundle.read_bytes("docs/MODEL_CARD.md") == plain.read_bytes("docs/MODEL_CARD.md")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as opened:
        opened.writestr("other/", b"")
    with pytest.raises(BundleIntegrityError, match="'other' is not listed"):
        open_bundle(tmp_path / "a.zip")


def test_after_close_it_says_so(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    bundle.close()
    bundle.close()
    with pytest.raises(ClosedError, match="open it again"):
        bundle.read_bytes("vocab.txt")


def test_asking_for_what_is_not_there_names_what_is(tiny_bundle):
    with open_bundle(tiny_bundle) as bundle:
        with pytest.raises(
            BundleError, match=r"no file '\.\./conftest.py'; it has MODEL_CARD.md, decoder.onnx"
        ):
            bundle.path("../conftest.py")
        with pytest.raises(BundleError, match=r"no vision graph for coreml; it has vision \(onnx\)"):
            bundle.graph("vision", "coreml")


def test_a_file_that_changes_while_open_is_noticed(copied):
    bundle = open_bundle(copied)
    (copied / "vocab.txt").write_bytes(b"[PAD]\n")
    with pytest.raises(BundleIntegrityError, match="changed while the bundle was open: 6 bytes"):
        bundle.read_bytes("vocab.txt")
    (copied / "vocab.txt").unlink()
    with pytest.raises(BundleIntegrityError, match="can no longer be read"):
        bundle.read_bytes("vocab.txt")


def test_the_embedded_bundle_is_the_default_and_no_variable_changes_it(tiny_bundle, tmp_path, monkeypatch):
    for name in ("TELLAPART_MODEL", "TELLAPART_BUNDLE"):
        monkeypatch.setenv(name, str(tiny_bundle))
    monkeypatch.setattr(bundle_module, "EMBEDDED", tmp_path / "model")
    with pytest.raises(BundleError, match="no embedded bundle"):
        open_bundle(None)
    shutil.copytree(tiny_bundle, tmp_path / "model")
    assert open_bundle().root == (tmp_path / "model").resolve()


@pytest.mark.parametrize("path", ["", "nowhere", "a\0b", 7, b"bytes"])
def test_what_is_no_bundle_at_all(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=r"there is no bundle at 'nowhere'|is named by a path"):
        open_bundle(path)


def test_a_folder_without_manifest_was_never_finished(copied):
    (copied / "tellapart.json").unlink()
    with pytest.raises(BundleIntegrityError, match=r"has no tellapart.json"):
        open_bundle(copied)


# One damage per line: a change of a folder, the error, words of its message.


def flip_a_byte(folder):
    content = bytearray((folder / "decoder.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "decoder.onnx").write_bytes(content)


def lengthen(folder):
    with (folder / "text.onnx").open("ab") as stream:
        stream.write(b"\0")


def remove(folder):
    (folder / "vision.onnx").unlink()


def add_a_file(folder):
    (folder / "extra.bin").write_bytes(b"x")


def add_a_hidden_file(folder):
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / ".hidden").write_bytes(b"")


def add_an_empty_folder(folder):
    (folder / "empty").mkdir()


def newer_version(folder):
    edit_manifest(folder, lambda page: page.update(format_version=9))


def wrong_size_in_manifest(folder):
    edit_manifest(folder, lambda page: page["files"]["vocab.txt"].update(bytes=1))


def wrong_hash_in_manifest(folder):
    edit_manifest(folder, lambda page: page["files"]["vocab.txt"].update(sha256="0" * 64))


def escaping_path(folder):
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (folder.parent / "outside").write_bytes(b"")
    edit_manifest(folder, lambda page: page["files"].update({"../outside": entry}))


def manifest_is_huge(folder):
    (folder / "tellapart.json").write_bytes(b" " * (5 << 20))


DAMAGES = [
    (flip_a_byte, BundleIntegrityError, "'decoder.onnx' is damaged: its SHA-256 is"),
    (lengthen, BundleIntegrityError, "'text.onnx' has 2156 bytes, expected 2155"),
    (remove, BundleIntegrityError, "'vision.onnx' is missing"),
    (add_a_file, BundleIntegrityError, "'extra.bin' is not listed"),
    (add_a_hidden_file, BundleIntegrityError, "'deep/er/.hidden' is not listed"),
    (newer_version, BundleVersionError, "upgrade"),
    (wrong_size_in_manifest, BundleIntegrityError, "expected 1"),
    (wrong_hash_in_manifest, BundleIntegrityError, "'vocab.txt' is damaged"),
    (escaping_path, ManifestError, "'..' or empty parts"),
    (manifest_is_huge, ManifestError, "larger than"),
]


@pytest.mark.parametrize(
    ("damage", "kind", "words"), [*DAMAGES, (add_an_empty_folder, BundleIntegrityError, "'empty' is")]
)
def test_a_damaged_folder_is_refused(damage, kind, words, copied):
    damage(copied)
    with pytest.raises(kind, match=words) as caught:
        open_bundle(copied)
    assert caught.value.bundle == str(copied)


@pytest.mark.parametrize(("damage", "kind", "words"), DAMAGES)
def test_a_damaged_zip_is_refused_and_leaves_nothing(damage, kind, words, copied, tmp_path, private_temp):
    damage(copied)
    archive = zip_of(copied, tmp_path / "a.zip")
    with pytest.raises(kind, match=words) as caught:
        open_bundle(archive)
    assert caught.value.bundle == str(archive)
    assert list(private_temp.iterdir()) == []


@pytest.mark.parametrize("target", ["inside", "outside", "folder", "dangling", "manifest"])
def test_a_link_is_refused_wherever_it_leads(target, copied, tmp_path):
    name = "tellapart.json" if target == "manifest" else "vocab.txt"
    real = (copied if target == "inside" else tmp_path) / "real"
    if target == "folder":
        (tmp_path / "elsewhere").mkdir()
        (copied / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    else:
        shutil.move(copied / name, real)
        if target == "dangling":
            real.unlink()
        (copied / name).symlink_to(real)
    with pytest.raises(BundleIntegrityError, match="link"):
        open_bundle(copied)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a thing of POSIX")
@pytest.mark.parametrize("name", ["tellapart.json", "vocab.txt"])
def test_a_named_pipe_is_refused_without_waiting_for_it(name, copied):
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(BundleIntegrityError, match=r"regular file|special file"):
        open_bundle(copied)


def test_the_path_itself_may_be_a_link(tiny_bundle, tmp_path):
    (tmp_path / "current").symlink_to(tiny_bundle, target_is_directory=True)
    assert open_bundle(tmp_path / "current").manifest.name == "tiny"


def test_nothing_but_the_manifest_is_read_before_names_and_sizes_fit(copied, monkeypatch):
    remove(copied)
    read = []
    opened = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: read.append(str(path)) or opened(path, *rest, **more)
    )
    with pytest.raises(BundleIntegrityError):
        open_bundle(copied)
    assert [Path(path).name for path in read] == ["tellapart.json"]


def test_verify_files_stands_alone(copied):
    with open_bundle(copied) as bundle:
        verify_files(copied, bundle.manifest)
        flip_a_byte(copied)
        with pytest.raises(BundleIntegrityError, match="damaged"):
            verify_files(copied, bundle.manifest)


# What only a zip can do.


def test_a_compressed_zip_is_refused_with_the_way_out(tiny_bundle, tmp_path, private_temp):
    archive = zip_of(tiny_bundle, tmp_path / "a.zip", compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleIntegrityError, match="is compressed; a bundle is only stored: zip -0"):
        open_bundle(archive)
    assert list(private_temp.iterdir()) == []


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ("vocab.txt", "has 'vocab.txt' twice"),
        ("VOCAB.TXT", "has 'VOCAB.TXT' twice"),
        ("tellapart.json", "has 'tellapart.json' twice"),
        ("../escape.txt", "must not have"),
        ("/absolute.txt", "is absolute"),
        ("C:/drive.txt", "backslash or a colon"),
        ("extra.txt", "'extra.txt' is not listed"),
    ],
)
def test_a_member_too_many_is_refused(member, words, tiny_bundle, tmp_path, private_temp):
    archive = zip_of(tiny_bundle, tmp_path / "a.zip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the duplicate that is made here
        with zipfile.ZipFile(archive, "a") as opened:
            opened.writestr(member, b"x")
    with pytest.raises(BundleIntegrityError, match=words):
        open_bundle(archive)
    assert list(private_temp.iterdir()) == []
    assert not (tmp_path / "escape.txt").exists()


def test_a_member_name_with_a_nul_is_refused(tiny_bundle, tmp_path, private_temp):
    archive = zip_of(tiny_bundle, tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("hideXme.txt", b"x")
    archive.write_bytes(archive.read_bytes().replace(b"hideXme.txt", b"hide\0me.txt"))
    with pytest.raises(BundleIntegrityError, match=r"control characters|not written as it reads"):
        open_bundle(archive)


def test_a_link_in_a_zip_is_refused(tiny_bundle, tmp_path, private_temp):
    archive = zip_of(tiny_bundle, tmp_path / "a.zip", skip=("vocab.txt",))
    link = zipfile.ZipInfo("vocab.txt")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(link, b"/etc/passwd")
    with pytest.raises(BundleIntegrityError, match=r"'vocab.txt' is a link"):
        open_bundle(archive)
    assert list(private_temp.iterdir()) == []


def test_an_encrypted_member_is_refused(tiny_bundle, tmp_path, private_temp):
    archive = zip_of(tiny_bundle, tmp_path / "a.zip")
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # general purpose flag of the first central entry
    archive.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="encrypted"):
        open_bundle(archive)


def test_a_zip_around_a_folder_is_told_from_a_zip_of_it(tiny_bundle, tmp_path, private_temp):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.write(tiny_bundle / "tellapart.json", "tiny/tellapart.json")
    with pytest.raises(BundleIntegrityError, match=r"no tellapart.json at its top"):
        open_bundle(tmp_path / "a.zip")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + b"\0" * 60, b"PK\x05\x06" + b"\0" * 18])
def test_a_file_that_is_no_zip_or_an_empty_one(content, tmp_path, private_temp):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(BundleIntegrityError, match=r"no zip that can be read|no tellapart.json at its top"):
        open_bundle(tmp_path / "a.zip")
    assert list(private_temp.iterdir()) == []


def test_cut_and_scribbled_zips_never_open_and_never_break_the_type(
    tiny_bundle, tmp_path, generator, private_temp
):
    whole = zip_of(tiny_bundle, tmp_path / "whole.zip").read_bytes()
    archive = tmp_path / "a.zip"
    for length in generator.integers(0, len(whole), 20):
        archive.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            open_bundle(archive)
    with open_bundle(tmp_path / "whole.zip") as bundle:
        want = {name: bundle.read_bytes(name) for name in bundle.manifest.files}
    for place in generator.integers(0, len(whole), 60):
        content = bytearray(whole)
        content[place] ^= int(generator.integers(1, 256))
        archive.write_bytes(content)
        try:
            with open_bundle(
                archive
            ) as bundle:  # a time or an attribute may differ, a byte of a file may not
                assert {name: bundle.read_bytes(name) for name in bundle.manifest.files} == want
        except BundleError:
            pass
    assert list(private_temp.iterdir()) == []
