"""Random damage to manifests, images and texts: an answer or one of our errors, nothing else.

Seeded mutation, as the SDK's environment has no fuzzing library. TELLAPART_FUZZ_ROUNDS asks for more rounds.
"""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from tellapart.errors import BundleError, ImageError, TellapartError
from tellapart.image import load_image
from tellapart.manifest import Manifest, Vocabulary, parse_manifest
from tellapart.tokenizer import Tokenizer

ROUNDS = int(os.environ.get("TELLAPART_FUZZ_ROUNDS", "1"))


def mutated(content, generator):
    """The bytes with a few of them changed, cut out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(int(generator.integers(1, 6))):
        place = int(generator.integers(0, max(1, len(content))))
        length = int(generator.integers(1, 9))
        match int(generator.integers(0, 5)):
            case 0:
                content[place : place + length] = generator.bytes(length)
            case 1:
                del content[place : place + length]
            case 2:
                content[place:place] = content[place : place + length]
            case 3:
                content[place : place + 1] = bytes([content[place] ^ (1 << int(generator.integers(0, 8)))])
            case _:
                if generator.integers(0, 4) == 0:
                    del content[place:]
        if not content:
            break
    return bytes(content)


def test_damaged_manifests(tiny_bundle, generator):
    page = (tiny_bundle / "tellapart.json").read_bytes()
    opened = 0
    for _ in range(400 * ROUNDS):
        try:
            manifest = parse_manifest(mutated(page, generator))
        except BundleError:
            continue
        opened += 1
        assert parse_manifest(manifest.to_json()) == manifest
    assert opened < 400 * ROUNDS


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    "",
    "x",
    "../x",
    "/x",
    "\0",
    [],
    [1],
    {},
    {"a": 1},
    [[]],
    "é" * 300,
]


def test_manifests_with_one_value_of_another_kind(tiny_bundle, generator):
    """Every place of the page in turn, so that no key is read without a check."""
    page = json.loads((tiny_bundle / "tellapart.json").read_text())
    places = []

    def collect(value, path):
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in items:
            places.append((*path, key))
            collect(inner, (*path, key))

    collect(page, ())
    for path in places:
        for odd in generator.choice(len(ODD_VALUES), 5 * ROUNDS):
            changed = json.loads(json.dumps(page))
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = ODD_VALUES[odd]
            try:
                assert isinstance(parse_manifest(json.dumps(changed)), Manifest)
            except BundleError:
                continue


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_damaged_images(kind, generator):
    pixels = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    Image.fromarray(pixels).save(stream, kind, **options)
    content = stream.getvalue()
    for _ in range(60 * ROUNDS):
        try:
            loaded = load_image(mutated(content, generator), max_megapixels=0.1)
        except ImageError:
            continue
        assert loaded.dtype == np.uint8
        assert loaded.ndim == 3
        assert loaded.shape[2] == 3
        assert loaded.size <= 300_000


def test_bytes_that_begin_like_an_image(generator):
    starts = [
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x20\0\0\0WEBPVP8 ",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"P6 ",
    ]
    starts += [b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x1cftypavif", b"\0\0\0\x18ftypheic", b"MM\0+"]
    for start in starts:
        for length in (0, 1, 8, 40, 200):
            with pytest.raises(ImageError):
                load_image(start + generator.bytes(length), max_megapixels=0.1)


def test_any_text_is_encoded_and_decoded(tiny_bundle, generator):
    tokenizer = Tokenizer.from_lines((tiny_bundle / "vocab.txt").read_text().splitlines(), Vocabulary())
    for _ in range(300 * ROUNDS):
        top = int(generator.choice([0x80, 0x300, 0x3000, 0x110000]))
        text = "".join(map(chr, generator.integers(0, top, int(generator.integers(0, 40)))))
        ids = tokenizer.encode(text, 20)
        assert len(ids) <= 20
        assert (ids[0], ids[-1]) == (tokenizer.start_id, tokenizer.end_id)
        assert "[SEP]" not in tokenizer.decode(ids)


def test_any_bytes_as_a_vocabulary(generator):
    good = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n##b\nc\n"
    for _ in range(200 * ROUNDS):
        lines = mutated(good, generator).decode("utf-8", "replace").split("\n")
        try:
            tokenizer = Tokenizer.from_lines(lines, Vocabulary())
        except TellapartError:
            continue
        assert len(tokenizer.encode("a ab cb")) >= 5
