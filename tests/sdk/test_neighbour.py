"""A good neighbour: memory that stays flat, graphs that are let go when idle."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tellapart import Captioner, DecodeOptions, RuntimeOptions, UsageError

Images = dict[str, np.ndarray]


def rss_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def wait_until(condition: object, seconds: float = 10.0) -> None:
    assert callable(condition)
    deadline_s = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert condition()


def test_graphs_are_let_go_when_idle_and_opened_again(tiny_bundle: Path, toy_images: Images) -> None:
    runtime = RuntimeOptions(idle_unload_s=0.2)
    with Captioner.open(tiny_bundle, runtime=runtime) as captioner:
        first = captioner.caption(toy_images["red"])
        graphs = captioner._engine._here().graphs
        assert {"vision", "decoder"} <= set(graphs)
        wait_until(lambda: not graphs)
        again = captioner.caption(toy_images["red"])
        assert (again.token_ids, again.mean_logprob) == (first.token_ids, first.mean_logprob)
        assert again.elapsed_ms["load"] > 0
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)
                and thread.is_alive() and not thread.finished.is_set()]  # fmt: skip


def test_use_keeps_graphs_and_a_search_under_way_is_not_disturbed(
    tiny_bundle: Path, toy_images: Images
) -> None:
    with Captioner.open(tiny_bundle, runtime=RuntimeOptions(idle_unload_s=0.3)) as captioner:
        pieces = captioner.stream(toy_images["red_blue"])
        said = [next(pieces)]
        graphs = captioner._engine._here().graphs
        for _ in range(8):  # longer than the limit in all, never idle for so long
            time.sleep(0.08)
            captioner.look(toy_images["red"])
            assert "vision" in graphs
        wait_until(lambda: not graphs)
        said += pieces  # its decoder was let go meanwhile, and is still its own
        greedy = DecodeOptions(beams=1)
        assert "".join(said) == captioner.caption(toy_images["red_blue"], options=greedy).text
    with pytest.raises(UsageError, match="idle_unload_s"):
        RuntimeOptions(idle_unload_s=0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux tells it")
def test_memory_stays_flat_over_many_captions(tiny_bundle: Path, toy_images: Images) -> None:
    images = [*toy_images.values()]
    with Captioner.open(tiny_bundle) as captioner:

        def caption(count: int) -> None:
            for found in captioner.caption_many((images[n % len(images)] for n in range(count)), workers=2):
                assert found.text
            for number in range(count):
                captioner.caption(images[number % len(images)], options=DecodeOptions(beams=1 + number % 4))

        caption(150)
        before_mib = rss_mib()
        caption(500)
        assert rss_mib() - before_mib < 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux tells it")
def test_closing_gives_most_of_the_memory_back() -> None:
    # In a process of its own: others leave holes in the heap that this one could fill.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import onnxruntime, numpy as np\n"
        "from tellapart import Captioner, DecodeOptions, RuntimeOptions\n"
        "from tellapart.bench import drawn_photos\n"
        "def rss(): return [int(l.split()[1]) for l in open('/proc/self/status') if l[:6] == 'VmRSS:'][0]\n"
        "photos, empty = drawn_photos(4) * 6, rss()\n"
        "captioner = Captioner.open(runtime=RuntimeOptions(threads=1))\n"
        "for _ in captioner.caption_many(photos, workers=2, options=DecodeOptions(beams=4)): pass\n"
        "full = rss(); captioner.close(); print(full - empty, rss() - empty)\n"
    )
    sdk = str(Path(__file__).parents[2] / "sdk")
    done = subprocess.run([sys.executable, "-c", code, sdk], capture_output=True, text=True, check=True)
    full_kib, left_kib = map(int, done.stdout.split())
    assert full_kib > 40_000
    assert left_kib < 0.6 * full_kib


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux tells it")
def test_memory_of_the_embedded_model_stays_flat_and_most_of_it_comes_back() -> None:
    photos = sorted((Path(__file__).parents[2] / "samples" / "photos").glob("*.jpg"))
    options = DecodeOptions(beams=4, rerank=1.0)
    with Captioner.open(runtime=RuntimeOptions(idle_unload_s=1.0)) as captioner:
        empty_mib = rss_mib()
        for number in range(100):
            captioner.caption(photos[number % len(photos)], options=options)
        full_mib = rss_mib()
        for number in range(300):
            captioner.caption(photos[number % len(photos)], options=options)
        assert rss_mib() - full_mib < 10
        wait_until(lambda: not captioner._engine._here().graphs)
        time.sleep(0.2)
        assert rss_mib() - empty_mib < 0.6 * (full_mib - empty_mib)
