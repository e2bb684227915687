"""Bulk captioning: the same captions as one at a time, in order, and nothing lost when the disk fills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart import Captioner, ClosedError, ImageError, OutputError, RuntimeOptions, UsageError
from tellapart.bulk import in_order
from tellapart.cli import main
from tellapart.commands.outputs import append_whole

SDK = Path(__file__).parents[2] / "sdk"
Images = dict[str, np.ndarray]


def test_results_come_in_order_whoever_is_done_first() -> None:
    gate = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            gate.wait(10)  # the first is the slowest
        if number == 3:
            gate.set()
        return number * number

    assert list(in_order(work, iter(range(20)), workers=4)) == [number * number for number in range(20)]


def test_items_are_taken_a_bounded_number_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(abs, items(), workers=3)
    assert taken == []
    for number in range(50):
        assert next(results) == number
        assert len(taken) <= number + 6
    results.close()
    assert len(taken) <= 56


def test_an_error_comes_in_its_turn_and_ends_the_rest() -> None:
    def work(number: int) -> int:
        if number == 2:
            raise UsageError("two")
        return number

    results = in_order(work, iter(range(100)), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(UsageError, match="two"):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_caption_as_one_does(tiny_bundle: Path, toy_images: Images, workers: int) -> None:
    images = [*toy_images.values()] * 5
    with Captioner.open(tiny_bundle, runtime=RuntimeOptions(threads=1)) as captioner:
        alone = [captioner.caption(image) for image in images]
        found = list(captioner.caption_many(images, workers=workers))
    assert [(one.text, one.token_ids, one.mean_logprob, one.confidence) for one in found] == [
        (one.text, one.token_ids, one.mean_logprob, one.confidence) for one in alone
    ]


def test_bad_images_keep_their_place_or_end_it(tiny_bundle: Path, toy_images: Images) -> None:
    images = [toy_images["red"], b"no image", toy_images["blue"], b"", toy_images["red"]]
    with Captioner.open(tiny_bundle) as captioner:
        found = list(captioner.caption_many(images, workers=3, on_error="yield"))
        assert [isinstance(item, ImageError) for item in found] == [False, True, False, True, False]
        results = captioner.caption_many(images, workers=3)
        assert next(results).text
        with pytest.raises(ImageError):
            next(results)
        with pytest.raises(UsageError, match="workers"):
            captioner.caption_many(images, workers=0)


def test_closing_under_the_workers_is_typed_and_leaves_no_thread(
    tiny_bundle: Path, toy_images: Images
) -> None:
    captioner = Captioner.open(tiny_bundle)
    results = captioner.caption_many([toy_images["red"]] * 50, workers=3)
    assert next(results).text
    captioner.close()
    with pytest.raises(ClosedError):
        list(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tellapart-bulk")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve small pictures and one that is none."""
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(12):
        Image.new("RGB", (24, 24), (20 * number, 250 - 20 * number, 30)).save(place / f"{number:02}.png")
    (place / "05.png").write_bytes(b"broken")
    return place


def test_the_command_gives_the_same_file_with_workers(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    def lines(name: str, *options: str) -> list[tuple[str, str]]:
        target = tmp_path / name
        assert (
            main(["caption", str(folder), "--model", str(tiny_bundle), "--jsonl", str(target), *options]) == 1
        )
        found = [json.loads(line) for line in target.read_text().splitlines()]
        return [(record["image"], record.get("caption", "failed")) for record in found]

    one = lines("one.jsonl", "--workers", "1")
    assert len(one) == 12
    assert lines("many.jsonl", "--workers", "3") == one
    assert main(["caption", str(folder), "--model", str(tiny_bundle), "--workers", "0"]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_is_typed_and_resumed_without_a_caption_lost(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "captions.jsonl"
    arguments = ["caption", str(folder), "--model", str(tiny_bundle), "--jsonl", str(target)]
    # The kernel takes what fits and refuses the rest, as a full disk does.
    code = (
        "import resource, signal, sys; from tellapart.cli import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SDK)},
        check=False,
    )
    assert done.returncode == 1
    assert "OutputError" in done.stderr
    assert "--resume" in done.stderr
    written = target.read_bytes()
    assert 0 < len(written) <= 1500
    before = [json.loads(line) for line in written.splitlines()]  # every line is whole
    assert written.endswith(b"\n")
    assert main([*arguments, "--resume"]) == 1  # one image is broken
    after = [json.loads(line) for line in target.read_text().splitlines()]
    captions = [record for record in after if "caption" in record]
    assert captions[: len(before)] == [record for record in before if "caption" in record]
    assert len({record["image"] for record in captions}) == 11


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "lines"
    append_whole(target, b"one\n")
    with pytest.raises(OutputError, match="make room"):
        append_whole(tmp_path / "gone" / "lines", b"two\n")
    assert target.read_bytes() == b"one\n"
