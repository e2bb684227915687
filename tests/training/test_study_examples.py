"""Examples: which bags the rules choose, what is told of them, and the command on the toy world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tellapart.errors import DataError, UsageError  # noqa: E402
from tellapart.truematch import Benchmark, read_benchmark, write_benchmark  # noqa: E402
from tellapart_training.study.__main__ import main  # noqa: E402
from tellapart_training.study.examples import Examples, examples_page, find_examples  # noqa: E402

pytestmark = pytest.mark.train

NAMES = [f"{index}.png" for index in range(15)]


class Oracle:
    """The text "7" is the embedding of image 7, "7+" half of it and half of nothing."""

    name, sha256 = "oracle", "ab" * 32

    def embed_texts(self, texts: Sequence[str]) -> Any:
        rows = torch.eye(16)
        weak = [text.endswith("+") for text in texts]
        found = rows[[int(text.rstrip("+").split("|")[0]) for text in texts]]
        found[weak] = (found[weak] + rows[15]) / 2**0.5
        return found


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    return write_benchmark(
        tmp_path / "bench", bags={3: [NAMES[first : first + 3] for first in range(0, 15, 3)]}
    )


def _examples(benchmark: Benchmark, before: list[str], after: list[str]) -> Examples:
    rows = np.eye(16, dtype=np.float32)
    return find_examples(
        dict(zip(NAMES, before, strict=True)), dict(zip(NAMES, after, strict=True)),
        benchmark=benchmark, size=3, judge=Oracle(),  # type: ignore[arg-type]
        image_rows={name: rows[index] for index, name in enumerate(NAMES)},
    )  # fmt: skip


def _shifted(first: int) -> list[str]:
    return [str(first + (place + 1) % 3) for place in range(3)]


OWN = [str(index) for index in range(15)]
# Bag 1 all wrong, 2 one right, 3 two right, 4 all right, 5 all wrong.
BEFORE = [*_shifted(0), "3", "3", "4", "6", "7", "7", *OWN[9:12], *_shifted(12)]
# Bag 1 weakly right, 2 right, 3 right, 4 now fails in one, 5 as before but for one.
AFTER = ["0+", "1+", "2+", *OWN[3:9], "9", "9", "11", "12", *_shifted(12)[1:]]


def test_the_rules_choose_and_order(benchmark: Benchmark) -> None:
    found = _examples(benchmark, BEFORE, AFTER)
    # Bag 2: margins from 1 - 1 - 1 to 3; bag 1: from -3 to 3 / sqrt(2). Bag 3 had two of three right before.
    assert found.change[:2] == pytest.approx([3 + 3 / 2**0.5, 4.0], abs=1e-6)
    assert found.told_apart() == [0, 1]
    assert found.still_failing() == [4, 3]
    assert found.counts() == {
        "bags": 5, "all_right_before": 1, "all_right_after": 3, "more_right_after": 4,
        "fewer_right_after": 1, "told_apart": 2, "still_failing": 2,
    }  # fmt: skip
    # The other way round, what was won is lost.
    back = _examples(benchmark, AFTER, BEFORE)
    assert (back.told_apart(), back.still_failing()) == ([], [0, 4, 1, 2])


def test_equal_bags_come_in_the_order_of_the_benchmark(benchmark: Benchmark) -> None:
    found = _examples(benchmark, [text for first in range(0, 15, 3) for text in _shifted(first)], OWN)
    assert found.told_apart() == [0, 1, 2, 3, 4]
    assert found.still_failing() == []


def test_a_caption_that_fits_two_photos_equally_is_a_miss_and_names_the_other(benchmark: Benchmark) -> None:
    found = _examples(benchmark, OWN, ["14", *OWN[1:]])  # is like no photo of its bag
    record = found.to_record(count=9)
    [bag] = record["still_failing"]
    assert bag["after_right"] == 2
    assert bag["images"][0]["after"] == {"caption": "14", "finds": "1.png", "margin": 0.0}
    assert bag["images"][0]["before"] == {"caption": "0", "finds": "0.png", "margin": 1.0}


def test_the_page_tells_rules_counts_and_what_was_found_instead(benchmark: Benchmark) -> None:
    after = [*AFTER[:10], "9|a\nb", *AFTER[11:]]
    record = _examples(benchmark, BEFORE, after).to_record(count=1)
    assert json.loads(json.dumps(record)) == record
    assert [bag["bag"] for bag in record["told_apart"]] == [1]
    page = examples_page(record)
    assert "Of 5 bags of 3 look-alikes, 1 had every caption right before and 3 have after" in page
    assert "in 1 fewer. The judge is `oracle` (abababababab)" in page
    assert "1 of 2 bags. Rule: every caption after finds its own photo" in page
    assert "Bag 1: 0 of 3 right before, 3 after." in page
    assert "| `0.png` | ✗ 1 (finds `1.png`) | ✓ 0+ |" in page
    assert "Bag 4" not in page  # one of each kind, and bag 5 fails worse
    more = examples_page(_examples(benchmark, BEFORE, after).to_record(count=2))
    assert "| `10.png` | ✓ 10 | ✗ 9\\|a b (finds `9.png`) |" in more


def test_wrong_sizes_and_missing_captions_are_named(benchmark: Benchmark) -> None:
    rows = dict.fromkeys(NAMES, np.ones(4, np.float32))
    captions = dict(zip(NAMES, OWN, strict=True))
    with pytest.raises(UsageError, match=r"no bags of 7: choose --size out of 3"):
        find_examples(captions, captions, benchmark=benchmark, size=7, judge=Oracle(), image_rows=rows)  # type: ignore[arg-type]
    captions.pop("14.png")
    with pytest.raises(DataError, match=r"14\.png"):
        find_examples(captions, captions, benchmark=benchmark, size=3, judge=Oracle(), image_rows=rows)  # type: ignore[arg-type]


def test_the_command_on_the_toy_world(
    toy_world: Path, tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (toy_world / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for turn, name in enumerate(("before", "after")):
        captions = {record["image"]: record["captions"][turn] for record in records}
        (tmp_path / f"{name}.json").write_text(json.dumps(captions))
    command = [
        "examples", "--before", str(tmp_path / "before.json"), "--after", str(tmp_path / "after.json"),
        "--benchmark", str(benchmark.folder), "--images", str(toy_world / "images"), "--size", "3",
        "--judge", str(toy_world / "init"), "--run", str(tmp_path / "run"), "--count", "1",
    ]  # fmt: skip
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["counts"]["bags"] == 5
    assert record["benchmark"]["sha256"] == read_benchmark(benchmark.folder).sha256
    assert len(record["still_failing"]) == 1
    assert main(command) == 0
    assert capsys.readouterr().out == examples_page(record)
    assert main([*command, "--count", "0"]) == 2
    assert main([*command, "--size", "5"]) == 2
    assert main([*command, "--judge", str(tmp_path)]) == 1
    (tmp_path / "after.json").write_text('{"0.png": 1}')
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("study: ") == 4
