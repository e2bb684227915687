"""Alt text as XMP: other readers find it, and what others wrote is never taken for ours."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as tree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tellapart.cli import main
from tellapart.xmp import alt_text_xmp, model_of_xmp

MODEL = "ab" * 32

# The path by which WordPress reads alt text (wp_get_image_alttext), and the namespaces of the IPTC Photo
# Metadata Standard 2021.1, written out here a second time on purpose.
NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}
PATH = "rdf:RDF/rdf:Description/Iptc4xmpCore:AltTextAccessibility/rdf:Alt/rdf:li"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def read(text: str) -> dict[str, str]:
    """Alt texts by language, as a reader that knows nothing of us finds them."""
    root = tree.fromstring(text)
    assert root.tag == "{adobe:ns:meta/}xmpmeta"
    return {item.get(LANGUAGE, ""): item.text or "" for item in root.iterfind(PATH, NAMESPACES)}


def test_a_reader_finds_the_text_the_default_first() -> None:
    found = read(alt_text_xmp('A "<dog>" & a cat', model=MODEL))
    assert found == {"x-default": 'A "<dog>" & a cat', "en": 'A "<dog>" & a cat'}
    assert next(iter(found)) == "x-default"


@given(st.text(), st.sampled_from(["en", "pt-BR"]))
def test_any_text_makes_a_file_that_we_know_again(text: str, language: str) -> None:
    page = alt_text_xmp(text, model=MODEL, language=language)
    assert set(read(page)) == {"x-default", language}
    assert model_of_xmp(page.encode("utf-8")) == MODEL
    assert model_of_xmp(page.replace("\n", "\r\n").encode("utf-8")) == MODEL


@pytest.mark.parametrize(
    "change",
    [
        lambda page: page.replace("A dog", "My dog Rex", 1),
        lambda page: page.replace(
            ' rdf:about=""', ' rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"'
        ),
        lambda page: page.replace(f' tellapart:model="{MODEL}"', ""),
        lambda page: page[:-20],
        lambda page: '<!DOCTYPE x [<!ENTITY a "b">]>' + page,
        lambda page: "",
        lambda page: "dear diary",
    ],
)
def test_what_others_changed_or_wrote_is_theirs(change: object) -> None:
    assert callable(change)
    page = alt_text_xmp("A dog", model=MODEL)
    assert model_of_xmp(change(page).encode("utf-8")) is None
    assert model_of_xmp(b"\xff\xfe") is None


def test_xmp_sidecars_lie_beside_and_never_replace_another_programs(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, colour in {"a": (5, 15, 240), "b": (250, 10, 10)}.items():
        Image.fromarray(np.full((24, 32, 3), colour, np.uint8)).save(photos / f"{name}.png")
    shutil.copyfile(photos / "a.png", photos / "a.PNG.png")  # each has its own file, whatever it is called
    originals = {path: path.read_bytes() for path in photos.iterdir()}
    arguments = ["caption", str(photos), "--model", str(tiny_bundle), "--sidecar", "xmp"]
    assert main(arguments) == 0
    written = {path.name for path in photos.iterdir()} - {path.name for path in originals}
    assert written == {"a.png.xmp", "b.png.xmp", "a.PNG.png.xmp"}
    assert "blue" in read((photos / "a.png.xmp").read_text("utf-8"))["x-default"].lower()

    (photos / "b.png.xmp").unlink()
    assert main(arguments) == 2  # those that are there are in the way
    assert main([*arguments, "--resume"]) == 0
    assert (photos / "b.png.xmp").exists()

    edits = photos / "b.png.xmp"
    edits.write_text('<x:xmpmeta xmlns:x="adobe:ns:meta/">darktable:history</x:xmpmeta>')
    before = edits.read_bytes()
    for flag in ("--resume", "--overwrite"):
        capsys.readouterr()
        assert main([*arguments, flag]) == 2
        assert "another program" in capsys.readouterr().err
    assert edits.read_bytes() == before
    edits.unlink()
    assert main([*arguments, "--overwrite"]) == 0
    assert {path: path.read_bytes() for path in originals} == originals
