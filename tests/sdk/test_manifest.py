"""The manifest: read strictly, written the same again."""

from __future__ import annotations

import copy
import json

import pytest

from tellapart.errors import BundleVersionError, ManifestError
from tellapart.manifest import MAX_MANIFEST_BYTES, Preprocessing, parse_manifest


@pytest.fixture
def page(tiny_bundle):
    """The tiny bundle's manifest as plain values, free to change."""
    return json.loads((tiny_bundle / "tellapart.json").read_text())


def test_reads_what_the_file_says(page):
    manifest = parse_manifest(json.dumps(page))
    assert manifest.name == "tiny"
    assert manifest.kind == ("captioner", "retriever")
    assert manifest.targets == ("onnx",)
    assert manifest.preprocessing == Preprocessing(
        image_px=16, resize="squash", filter="bicubic", in_graph=True
    )
    assert manifest.decoding.beams == 3
    assert manifest.decoding.no_repeat_ngram == 0
    assert manifest.graphs[1].inputs[1].shape == (4, "batch", 2, "past", 4)
    assert manifest.files["vocab.txt"].bytes == page["files"]["vocab.txt"]["bytes"]


def test_writing_and_reading_are_inverse(page):
    page["metrics"] = {"cider": 0.61, "by split": {"val": [1, 2, None, True]}, "title": "größer"}
    manifest = parse_manifest(json.dumps(page))
    text = manifest.to_json()
    assert parse_manifest(text) == manifest
    assert parse_manifest(text.encode()).to_json() == text
    assert json.loads(text)["metrics"] == page["metrics"]


def test_byte_pairs_may_have_one_mark_for_everything(page):
    page["vocabulary"] = {**WORDS, "kind": "byte_bpe", "merges": "MODEL_CARD.md"}
    vocabulary = parse_manifest(json.dumps(page)).vocabulary
    assert (vocabulary.kind, vocabulary.start, vocabulary.end) == ("byte_bpe", "[PAD]", "[PAD]")
    del page["vocabulary"]["merges"], page["preprocessing"]["resize_px"]
    page["vocabulary"]["kind"] = "wordpiece"
    with pytest.raises(ManifestError, match="all differ"):
        parse_manifest(json.dumps(page))


def test_unknown_keys_are_welcome_in_reports_only(page):
    for section in ("metrics", "parity", "source"):
        page[section] = {"anything": {"at": ["all"]}}
    assert parse_manifest(json.dumps(page)).parity == {"anything": {"at": ["all"]}}


WORDS = {
    "file": "vocab.txt",
    "lowercase": True,
    "max_text_tokens": 9,
    **dict.fromkeys(("pad", "unknown", "start", "end"), "[PAD]"),
}
"""A vocabulary with one mark for everything, as GPT-2 has it."""


def put(*path_and_value):
    """A change of one place: keys, then the new value."""
    *path, key, value = path_and_value

    def change(page):
        for step in path:
            page = page[step]
        page[key] = value

    return change


def drop(*path):
    """A change that leaves one key out."""
    *path, key = path

    def change(page):
        for step in path:
            page = page[step]
        del page[key]

    return change


def rename_file(new):
    """A change that lists the model card under another path."""

    def change(page):
        page["files"][new] = page["files"].pop("MODEL_CARD.md")

    return change


def second_file(new):
    """A change that lists one more file."""
    return put("files", new, {"bytes": 0, "sha256": "0" * 64})


def same_role_twice(page):
    page["graphs"].append(copy.deepcopy(page["graphs"][0]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("name"), "name is missing"),
        (put("name", ""), "name must be a string that is not empty"),
        (put("nmae", "x"), "nmae is not a known key; did you mean 'name'"),
        (put("decoding", "beam", 3), "decoding.beam is not a known key; did you mean 'beams'"),
        (put("format_version", 0), "format_version must be an integer of at least 1"),
        (put("format_version", "1"), "format_version must be an integer"),
        (put("format_version", True), "format_version must be an integer"),
        (put("kind", []), "kind must name each kind once"),
        (put("kind", ["captioner", "captioner"]), "kind must name each kind once"),
        (put("kind", ["painter"]), "kind must be a list out of captioner, retriever, got 'painter'"),
        (put("kind", "captioner"), "kind must be a list of strings"),
        (put("preprocessing", []), "preprocessing must be an object"),
        (put("preprocessing", "image_px", 224.0), "preprocessing.image_px must be an integer"),
        (put("preprocessing", "image_px", 100_000), "preprocessing.image_px must be .* at most 4096"),
        (put("preprocessing", "resize", "stretch"), "preprocessing.resize must be one of squash, crop"),
        (put("preprocessing", "filter", ["bicubic"]), "preprocessing.filter must be one of"),
        (put("preprocessing", "mean", [1, 2]), "preprocessing.mean must be a list of 3 numbers"),
        (put("preprocessing", "std", [1, 0, 1]), "std must be above 0"),
        (put("preprocessing", "std", [1, 10**400, 1]), "preprocessing.std must be a number"),
        (put("preprocessing", "in_graph", 1), "preprocessing.in_graph must be true or false"),
        (put("vocabulary", "kind", "bpe"), "vocabulary.kind must be one of wordpiece"),
        (put("vocabulary", "end", "[CLS]"), "special pieces must all differ"),
        (put("vocabulary", "kind", "byte_bpe"), "merges is a file for byte pairs alone, .* byte_bpe"),
        (put("vocabulary", "merges", "merges.txt"), "merges is a file for byte pairs alone, .* wordpiece"),
        (
            put("vocabulary", {**WORDS, "kind": "clip_bpe", "merges": "merges.txt"}),
            "names 'merges.txt' for the merges, and its files do not",
        ),
        (put("preprocessing", "resize_px", 8), "resize_px must be 0 or from image_px 16"),
        (put("graphs", 0, "outputs", 0, "name", "kv"), "captioner, and its vision .* no output 'cross_kv'"),
        (put("graphs", 0, "outputs", 1, "name", "row"), "retriever, and its vision .* no output 'embedding'"),
        (
            put("vocabulary", "file", "words.txt"),
            "names 'words.txt' for the vocabulary, and its files do not",
        ),
        (put("decoding", "min_new_tokens", 17), "min_new_tokens must not be above max_new_tokens"),
        (put("graphs", {}), "graphs must be a list of objects"),
        (put("graphs", 0, "role", "nose"), r"graphs\[0\].role must be one of vision, decoder, text"),
        (
            put("graphs", 0, "file", "eye.onnx"),
            "names 'eye.onnx' for the vision graph for onnx, and its files",
        ),
        (put("graphs", 0, "inputs", []), r"graphs\[0\].inputs must name each tensor once and at least one"),
        (put("graphs", 0, "inputs", 0, "shape", ["batch", 0]), r"shape must be a list of sizes above 0"),
        (
            put("graphs", 0, "inputs", 0, "dtype", "complex64"),
            r"graphs\[0\].inputs\[0\].dtype must be one of",
        ),
        (same_role_twice, "has the role 'vision' twice for the target 'onnx'"),
        (put("graphs", []), "calls itself a captioner and has no graph of role vision or decoder"),
        (put("files", "vocab.txt", "bytes", -1), "files.vocab.txt.bytes must be an integer of at least 0"),
        (put("files", "vocab.txt", "bytes", 1.0), "files.vocab.txt.bytes must be an integer"),
        (put("files", "vocab.txt", "bytes", "12"), "files.vocab.txt.bytes must be an integer"),
        (put("files", "vocab.txt", "sha256", "0" * 63), "files.vocab.txt.sha256 must be 64 lower-case"),
        (put("files", "vocab.txt", "sha256", "G" * 64), "files.vocab.txt.sha256 must be 64 lower-case"),
        (put("files", "vocab.txt", "mode", 7), "files.vocab.txt.mode is not a known key"),
        (rename_file("/etc/passwd"), "is absolute"),
        (rename_file("../outside.txt"), r"must not have '.', '..' or empty parts"),
        (rename_file("a/../../outside.txt"), r"must not have '.', '..' or empty parts"),
        (rename_file("./card.md"), r"must not have '.', '..' or empty parts"),
        (rename_file("a//card.md"), r"must not have '.', '..' or empty parts"),
        (rename_file("a\\card.md"), "backslash or a colon"),
        (rename_file("C:card.md"), "backslash or a colon"),
        (rename_file("card\0.md"), "control characters"),
        (rename_file(""), "is empty or longer"),
        (rename_file("card.md "), "space or ends with a dot"),
        (rename_file("card."), "space or ends with a dot"),
        (rename_file("Tellapart.JSON"), "itself, among its files"),
        (second_file("VOCAB.txt"), "one file where letter case is ignored"),
        (second_file("vocab.txt/inner"), "as a file and as the folder of"),
    ],
)
def test_refuses_a_wrong_page_and_says_where(page, change, words):
    change(page)
    with pytest.raises(ManifestError, match=words) as caught:
        parse_manifest(json.dumps(page), bundle="somewhere")
    assert "somewhere" in str(caught.value) or words.startswith(("std", "resize_px"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is not JSON in UTF-8"),
        (b"\xff\xfe{\0}\0", "is not JSON in UTF-8"),
        (b"{", "is not JSON in UTF-8"),
        (b"[]", "must hold a JSON object, got list"),
        (b'{"format_version": 1, "format_version": 1}', "has the key 'format_version' twice"),
        (b'{"metrics": {"a": NaN}}', "holds NaN"),
        (b'{"metrics": {"a": -Infinity}}', "holds -Infinity"),
        (b'{"metrics": {"a": 1e999}}', "holds 1e999"),
        (b"[" * 100_000, "nested deeper than 32"),
        (b'{"metrics": ' * 40 + b"1" + b"}" * 40, "nested deeper than 32"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "is not JSON in UTF-8"),
        (b'{"name": "\\ud800"}', "text that is not Unicode"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "is larger than"),
    ],
    ids=lambda value: None if isinstance(value, str) else value[:16].decode("latin-1"),
)
def test_refuses_what_is_no_strict_json(text, words):
    with pytest.raises(ManifestError, match=words):
        parse_manifest(text)


def test_a_newer_format_says_to_upgrade_even_with_keys_unknown_today(page):
    page.update(format_version=2, holograms=[])
    with pytest.raises(
        BundleVersionError, match=r"format_version 2 .* reads up to 1; upgrade it: pip install"
    ):
        parse_manifest(json.dumps(page))


def test_a_report_that_json_cannot_say_is_refused_when_written(page):
    manifest = parse_manifest(json.dumps(page))
    manifest.metrics["gap"] = float("nan")
    with pytest.raises(ManifestError, match="without NaN"):
        manifest.to_json()


@pytest.mark.parametrize(
    "fields",
    [{"image_px": 0}, {"image_px": True}, {"resize": "pad"}, {"filter": "nearest"}, {"std": (1.0, 1.0, 0.0)}],
)
def test_preprocessing_built_in_code_is_checked_too(fields):
    with pytest.raises(ManifestError, match="preprocessing"):
        Preprocessing(**{"image_px": 16, **fields})
