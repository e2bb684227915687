"""`tellapart truematch run` and `build`: figures by hand, the contract's JSON, statuses, no half files."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart.bundle import open_bundle
from tellapart.cli import main
from tellapart.truematch import read_benchmark

COLOURS = {
    "red": (250, 10, 10), "green": (10, 230, 20), "blue": (5, 15, 240), "white": (255, 255, 255),
    "black": (0, 0, 0), "yellow": (240, 230, 10), "cyan": (10, 230, 230),
}  # fmt: skip


@pytest.fixture
def bench(tmp_path):
    """Bags of flat colours with their photos; to the tiny bundle black is "a black sky near a blue field"."""
    folder = tmp_path / "bench"
    (folder / "benchmark").mkdir(parents=True)
    (folder / "images").mkdir()
    for name, colour in COLOURS.items():
        Image.fromarray(np.full((24, 32, 3), colour, np.uint8)).save(folder / "images" / f"{name}.png")
    three = [["red.png", "green.png", "blue.png"], ["white.png", "black.png", "blue.png"]]
    (folder / "benchmark" / "3.json").write_text(json.dumps(three))
    five = [["red.png", "green.png", "blue.png", "yellow.png", "cyan.png"]]
    (folder / "benchmark" / "5.json").write_text(json.dumps(five))
    return folder


@pytest.fixture
def truematch(tiny_bundle, capsys):
    """Run a step on the tiny bundle; status, stdout, stderr."""

    def run(step, *arguments, model=tiny_bundle):
        status = main(["truematch", step, *map(str, arguments), "--model", str(model), "--threads", "1"])
        return status, *capsys.readouterr()

    return run


def captions_file(path: Path, **changes: str) -> Path:
    captions = {f"{name}.png": f"A {name} field" for name in COLOURS}
    path.write_text(json.dumps({**captions, **changes}))
    return path


def test_the_json_is_the_contracts(bench, truematch, tiny_bundle):
    status, out, _ = truematch("run", bench, "--json")
    assert status == 0
    found = json.loads(out)
    contract = {"bags", "rd100", "ties", "model", "scorer", "latency_ms", "peak_rss_mib", "device"}
    assert set(found) == contract | {"benchmark", "captions", "notes"}
    # Of six captions in bags of 3 that of the black photo alone finds another, the blue one.
    three = found["bags"]["3"]
    assert {"bags", "images", "recall_at_1", "ci95", "chance"} <= three.keys()
    assert (three["bags"], three["images"]) == (2, 6)
    assert three["recall_at_1"] == pytest.approx(5 / 6, abs=1e-6)
    assert three["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert three["ci95"] == pytest.approx([2 / 3, 1], abs=1e-6)
    assert found["bags"]["5"]["recall_at_1"] == 1.0
    assert found["rd100"] is None
    assert found["ties"] == "strict"
    with open_bundle(tiny_bundle) as bundle:
        assert found["model"] == {
            "name": "tiny",
            "sha256": bundle.sha256,
            "options": found["model"]["options"],
        }
        assert found["scorer"] == {"name": "tiny", "sha256": bundle.sha256, "is_own": True}
    assert (
        hashlib.sha256((tiny_bundle / "tellapart.json").read_bytes()).hexdigest() == found["model"]["sha256"]
    )
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"]
    assert found["peak_rss_mib"] > 10
    assert {"cpu", "cores", "system", "packages", "threads"} <= found["device"].keys()
    assert found["captions"] == {"images": 7, "distinct": 7, "truncated": 0}
    assert any("flatters the model" in note for note in found["notes"])
    # Everything but times and memory comes again.
    again = json.loads(truematch("run", bench, "--json")[1])
    for record in (found, again):
        del record["latency_ms"], record["peak_rss_mib"]
    assert again == found


def test_the_table_says_the_same(bench, truematch):
    status, out, _ = truematch("run", bench)
    assert status == 0
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert lines["of 3"] == [
        "of",
        "3",
        "2",
        "6",
        "83.3",
        "%",
        "66.7",
        "to",
        "100.0",
        "33.3",
        "%",
        *["83.3", "%"] * 3,
    ]
    assert lines["of 5"][:5] == ["of", "5", "1", "5", "100.0"]
    assert "7 different captions of 7 images" in out
    assert "note: The scorer is the model's own retriever" in out


def test_captions_from_a_file_are_scored_and_nothing_is_captioned(bench, truematch, tmp_path):
    path = captions_file(tmp_path / "captions.json")
    status, out, err = truematch("run", bench, "--captions", path, "--json")
    assert status == 0
    found = json.loads(out)
    assert [size["recall_at_1"] for size in found["bags"].values()] == [1.0, 1.0]
    assert found["model"] == {
        "captions": "captions.json",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert found["latency_ms"] is None
    assert found["scorer"]["is_own"] is None
    assert any("it is not known" in note for note in found["notes"])
    captions_file(path, **{"red.png": "A green field", "other.png": "A dog"})
    status, out, err = truematch("run", bench, "--captions", path, "--json")
    assert json.loads(out)["bags"]["3"]["recall_at_1"] == pytest.approx(5 / 6, abs=1e-6)
    assert "1 captions of other images" in err


def test_saved_captions_score_as_they_did(bench, truematch, tmp_path):
    kept = tmp_path / "kept.json"
    first = json.loads(truematch("run", bench, "--json", "--save-captions", kept)[1])
    assert set(json.loads(kept.read_text())) == {f"{name}.png" for name in COLOURS}
    second = json.loads(truematch("run", bench, "--json", "--captions", kept)[1])
    assert second["bags"] == first["bags"]


def test_another_bundle_with_the_same_retriever_still_flatters(bench, truematch, tiny_bundle, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    page = json.loads((other / "tellapart.json").read_text())
    page["name"] = "another"
    (other / "tellapart.json").write_text(json.dumps(page))
    found = json.loads(truematch("run", bench, "--json", "--scorer", other)[1])
    assert found["scorer"]["name"] == "another"
    assert found["scorer"]["sha256"] != found["model"]["sha256"]
    assert found["scorer"]["is_own"] is True
    assert any("flatters the model" in note for note in found["notes"])
    # An empty name of the producer at the end of a graph changes its file and nothing that it computes.
    with (other / "text.onnx").open("ab") as file:
        file.write(b"\x12\x00")
    content = (other / "text.onnx").read_bytes()
    page["files"]["text.onnx"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (other / "tellapart.json").write_text(json.dumps(page))
    found = json.loads(truematch("run", bench, "--json", "--scorer", other)[1])
    assert (found["scorer"]["is_own"], found["notes"]) == (False, [])


@pytest.mark.parametrize(("ties", "recall"), [("strict", 1 / 3), ("expected", 2 / 3), ("optimistic", 1.0)])
def test_two_equal_photos_are_told_by_the_rule(ties, recall, bench, truematch):
    shutil.copy(bench / "images" / "red.png", bench / "images" / "twin.png")
    (bench / "benchmark" / "3.json").write_text('[["red.png", "twin.png", "blue.png"]]')
    found = json.loads(truematch("run", bench, "--json", "--ties", ties)[1])
    three = found["bags"]["3"]
    assert (found["ties"], three["recall_at_1"]) == (ties, pytest.approx(recall, abs=1e-6))
    rules = [three[f"recall_at_1_{rule}"] for rule in ("strict", "expected", "optimistic")]
    assert rules == pytest.approx([1 / 3, 2 / 3, 1], abs=1e-6)


def test_a_quick_look_says_so(bench, truematch):
    found = json.loads(truematch("run", bench, "--json", "--limit-bags", "1")[1])
    assert found["bags"]["3"]["bags"] == 1
    assert any("first 1 bags" in note for note in found["notes"])


def test_the_page_is_written_whole(bench, truematch, tmp_path):
    path = tmp_path / "report.html"
    status, _, err = truematch("run", bench, "--html", path, "--html-bags", "1")
    assert status == 0
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.endswith("</html>\n")
    assert page.count("<figure") == 3 + 5
    assert "✗ finds this one" in page  # the bag with the miss is the one shown
    assert f"wrote {path}" in err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["absent"], 1, "expected the folder of a benchmark"),
        (["{bench}", "--limit-bags", "0"], 2, "at least one bag"),
        (["{bench}", "--html-bags", "0"], 2, "--html-bags"),
        (["{bench}", "--html", "{tmp}/no/page.html"], 2, "the folder of --html"),
        (["{bench}", "--save-captions", "{tmp}/no/c.json"], 2, "the folder of --save-captions"),
        (["{bench}", "--captions", "{tmp}/c.json", "--save-captions", "{tmp}/d.json"], 2, "drop one"),
        (["{bench}", "--captions", "{tmp}/c.json", "--html", "{tmp}/c.json"], 2, "name another one"),
        (["{bench}", "--captions", "{tmp}/absent.json"], 1, "absent.json"),
        (["{bench}", "--captions", "{tmp}/few.json"], 1, "green.png"),
        (["{bench}", "--scorer", "{tmp}"], 1, "tellapart.json"),
        (["{bench}", "--images", "{tmp}/none"], 1, "none"),
        (["{bench}", "--rd100"], 2, "--rd100 needs 100 images, and the bags hold 7"),
        (["{bench}", "--ties", "maybe"], 2, "invalid choice"),
        (["{bench}", "--beams", "0"], 2, "beams"),
    ],
)
def test_errors_have_their_status_and_write_nothing(arguments, status, words, bench, truematch, tmp_path):
    captions_file(tmp_path / "c.json")
    (tmp_path / "few.json").write_text('{"red.png": "A red field"}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    given = [part.format(bench=bench, tmp=tmp_path) for part in arguments]
    found, out, err = truematch("run", *given)
    assert (found, out) == (status, "")
    assert words in err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_photos_that_are_missing_or_broken_stop_the_run(bench, truematch, tmp_path):
    path = tmp_path / "report.html"
    (bench / "images" / "blue.png").write_bytes(b"no photo")
    status, out, err = truematch("run", bench, "--html", path, "--save-captions", tmp_path / "c.json")
    assert (status, out) == (1, "")
    assert "UnreadableImageError" in err
    (bench / "images" / "blue.png").unlink()
    status, out, err = truematch("run", bench)
    assert status == 1
    assert "1 of 7 photos are missing or not alone with their name: blue.png" in err
    assert sorted(found.name for found in tmp_path.iterdir()) == ["bench"]


def test_a_page_that_cannot_be_put_in_place_leaves_nothing(bench, truematch, tmp_path):
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "thesis.txt").write_text("work")
    assert truematch("run", bench, "--html", tmp_path / "report.html")[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench", "report.html"]
    assert (tmp_path / "report.html" / "thesis.txt").read_text() == "work"


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    """102 photos of two colours each, as many as RD100 needs and two more."""
    folder, draw = tmp_path_factory.mktemp("pile"), np.random.default_rng(3)
    for index in range(102):
        halves = np.zeros((16, 16, 3), np.uint8)
        halves[:, :8], halves[:, 8:] = draw.integers(0, 256, (2, 3))
        Image.fromarray(halves).save(folder / f"{index:03}.png")
    return folder


def test_a_benchmark_is_built_and_run(pile, truematch, tmp_path, tiny_bundle):
    out = tmp_path / "mine"
    status, told, _ = truematch("build", pile, "--out", out, "--sizes", "3", "2", "--json")
    assert status == 0
    record = json.loads(told)
    made = read_benchmark(out)
    assert record["benchmark"] == {"name": made.name, "folder": str(out), "sha256": made.sha256}
    assert record["rd100_groups"] == len(made.rd100) == 1
    assert {size: found["bags"] for size, found in record["counts"].items()} == {
        str(size): len(bags) for size, bags in made.bags.items()
    }
    for size, bags in made.bags.items():
        images = [image for bag in bags for image in bag]
        assert len(set(images)) == len(images) == size * len(bags)
    with open_bundle(tiny_bundle) as bundle:
        assert made.facts["how"]["embedding"]["sha256"] == bundle.sha256
    assert str(tmp_path) not in (out / "benchmark.json").read_text()
    # The same again under another name, and the photos are found beside it.
    assert truematch("build", pile, "--out", tmp_path / "again", "--sizes", "2", "3")[0] == 0
    assert read_benchmark(tmp_path / "again").sha256 == made.sha256
    captions = {f"{index:03}.png": f"A {name} field" for index, name in enumerate([*COLOURS] * 15)}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    run = truematch("run", out, "--rd100", "--json", "--captions", tmp_path / "captions.json")
    found = json.loads(run[1])
    assert found["rd100"]["images"] == 100
    assert found["rd100"]["permutation"] == "stored with the benchmark"
    assert 1 <= found["rd100"]["mean_rank"] <= 100
    assert any("hardest for it" in note for note in found["notes"])


def test_a_benchmark_is_not_replaced_unasked(pile, truematch, tmp_path):
    out = tmp_path / "mine"
    options = ["--sizes", "2", "--max-bags", "2"]
    assert truematch("build", pile, "--out", out, *options)[0] == 0
    before = read_benchmark(out).sha256
    status, _, err = truematch("build", pile, "--out", out, *options, "--seed", "1")
    assert status == 2
    assert "--force" in err
    assert read_benchmark(out).sha256 == before
    assert truematch("build", pile, "--out", out, *options, "--seed", "1", "--force")[0] == 0
    assert read_benchmark(out).sha256 != before
    (out / "thesis.txt").write_text("work")
    assert truematch("build", pile, "--out", out, *options, "--force")[0] == 2
    assert (out / "thesis.txt").read_text() == "work"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["{few}", "--out", "{tmp}/out", "--sizes", "3"], 2, "bring more images"),
        (["{pile}", "--out", "{tmp}/out", "--sizes", "3", "3"], 2, "--sizes must be different"),
        (["{pile}", "--out", "{tmp}/out", "--sizes", "1"], 2, "--sizes must be different"),
        (["{pile}", "--out", "{tmp}/out", "--split", "val"], 2, "--split needs --captions"),
        (["{pile}", "--out", "{tmp}/no/out"], 2, "does not exist"),
        (["{tmp}/absent", "--out", "{tmp}/out"], 1, "absent"),
        (["{broken}", "--out", "{tmp}/out", "--sizes", "2"], 1, "UnreadableImageError"),
        (["{pile}", "--out", "{tmp}/out", "--captions", "{tmp}/c.jsonl"], 1, "c.jsonl"),
    ],
)
def test_a_build_that_fails_leaves_nothing(arguments, status, words, pile, truematch, tmp_path):
    for name in ("few", "broken"):
        (tmp_path / name).mkdir()
        for index in range(2):
            shutil.copy(pile / f"{index:03}.png", tmp_path / name)
    (tmp_path / "broken" / "002.png").write_bytes(b"no photo")
    given = [
        part.format(pile=pile, tmp=tmp_path, few=tmp_path / "few", broken=tmp_path / "broken")
        for part in arguments
    ]
    found, out, err = truematch("build", *given)
    assert (found, out) == (status, "")
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "few"]


def test_human_captions_choose_the_images_and_change_the_bags(pile, truematch, tmp_path):
    lines = [
        {
            "image": f"{index:03}.png",
            "split": "val" if index < 12 else "train",
            "captions": [f"A {name} field"],
        }
        for index, name in enumerate([*COLOURS] * 3)
    ]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [
        "build",
        pile,
        "--out",
        tmp_path / "out",
        "--captions",
        path,
        "--split",
        "val",
        "--sizes",
        "2",
    ]
    assert truematch(*arguments)[0] == 0
    made = read_benchmark(tmp_path / "out")
    assert {image for bag in made.bags[2] for image in bag} <= {f"{index:03}.png" for index in range(12)}
    assert made.facts["source"] == {"images": pile.name, "captions": "captions.jsonl", "split": "val"}
    assert "caption" in made.facts["how"]["likeness"]
