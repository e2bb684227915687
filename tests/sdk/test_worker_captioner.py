"""A captioner out of process: the same captions, typed ends, and another process after each."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart import (
    BundleError,
    Captioner,
    ClosedError,
    DecodeOptions,
    RuntimeOptions,
    UnreadableImageError,
    UnsureCaption,
    UsageError,
    WorkerCaptioner,
    WorkerError,
    errors,
)
from tellapart.worker_lines import caption_from, error_from, image_from, to_caption, to_error, to_image

Images = dict[str, np.ndarray]


@pytest.fixture
def worker(tiny_bundle: Path) -> Iterator[WorkerCaptioner]:
    with WorkerCaptioner.open(tiny_bundle, timeout_s=60) as opened:
        yield opened


def test_it_captions_as_one_in_this_process_does(
    worker: WorkerCaptioner, tiny_bundle: Path, toy_images: Images, tmp_path: Path
) -> None:
    assert worker.pid is None  # nothing is started before it is needed
    options = DecodeOptions(beams=4, n_best=3)
    path = tmp_path / "red.png"
    Image.fromarray(toy_images["red"]).save(path)
    images = [toy_images["red_blue"], path, path.read_bytes(), Image.open(path)]
    with Captioner.open(tiny_bundle) as captioner:
        for image in images:
            near, far = captioner.caption(image, options=options), worker.caption(image, options=options)
            assert (far.text, far.token_ids) == (near.text, near.token_ids)
            assert far.mean_logprob == near.mean_logprob
            assert [other.text for other in far.alternatives] == [other.text for other in near.alternatives]
        assert worker.pid not in (None, os.getpid())
        here = captioner.bag(toy_images.values(), mode="contrast")
        there = worker.bag(toy_images.values(), mode="contrast")
    assert [caption.text for caption in there.captions] == [caption.text for caption in here.captions]
    assert (there.ranks, there.recall_at_1) == (here.ranks, here.recall_at_1)
    assert np.array_equal(there.similarity, here.similarity)


def test_errors_cross_with_their_kind_and_the_process_goes_on(
    worker: WorkerCaptioner, toy_images: Images, tmp_path: Path
) -> None:
    assert worker.caption(toy_images["red"]).text
    first = worker.pid
    with pytest.raises(UnreadableImageError) as caught:
        worker.caption(tmp_path / "gone.jpg")
    assert caught.value.image.endswith("gone.jpg")
    with pytest.raises(UsageError):
        worker.bag([])
    with pytest.raises(UsageError, match="iterable"):
        worker.bag("photo.jpg")
    assert worker.caption(toy_images["red"]).text
    assert worker.pid == first


def test_a_bundle_that_is_none_is_typed(tmp_path: Path, toy_images: Images) -> None:
    with WorkerCaptioner.open(tmp_path, timeout_s=60) as worker:
        for _ in range(2):
            with pytest.raises(BundleError, match=r"tellapart\.json"):
                worker.caption(toy_images["red"])
            assert worker.pid is None


def test_a_crash_is_an_error_and_the_next_question_starts_another(
    worker: WorkerCaptioner, toy_images: Images
) -> None:
    expected = worker.caption(toy_images["red"]).text
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    deadline_s = time.monotonic() + 10
    while worker.pid is not None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert worker.caption(toy_images["red"]).text == expected  # it was dead before: nothing was lost
    second = worker.pid
    assert second not in (None, first)

    # A crash while it is at work: every question that was open says so.
    def crash() -> None:
        assert second is not None
        os.kill(second, signal.SIGSTOP)  # holds still, so that the question is surely open
        asked.wait(10)
        time.sleep(0.2)
        os.kill(second, signal.SIGKILL)

    asked = threading.Event()
    killer = threading.Thread(target=crash)
    killer.start()
    time.sleep(0.1)
    asked.set()
    with pytest.raises(WorkerError, match="SIGKILL"):
        worker.caption(toy_images["red"])
    killer.join()
    assert worker.caption(toy_images["red"]).text == expected


def test_no_answer_in_time_ends_it(toy_images: Images) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with WorkerCaptioner(sleeper, timeout_s=0.3) as worker:
        with pytest.raises(WorkerError, match=r"0\.3 s"):
            worker.caption(toy_images["red"])
        assert worker.pid is None


def test_last_words_and_a_program_that_is_none(toy_images: Images, tmp_path: Path) -> None:
    code = "import sys; print('out of memory', file=sys.stderr); sys.exit(9)"
    with (
        WorkerCaptioner([sys.executable, "-c", code], timeout_s=60) as worker,
        pytest.raises(WorkerError, match="status 9"),
    ):
        worker.caption(toy_images["red"])
    with (
        WorkerCaptioner([str(tmp_path / "gone")]) as worker,
        pytest.raises(WorkerError, match="does not start"),
    ):
        worker.caption(toy_images["red"])


def test_it_is_let_go_when_idle_and_comes_back(tiny_bundle: Path, toy_images: Images) -> None:
    runtime = RuntimeOptions(threads=1, idle_unload_s=0.3)
    with WorkerCaptioner.open(tiny_bundle, runtime=runtime, timeout_s=60) as worker:
        expected = worker.caption(toy_images["red"]).text
        first = worker.pid
        deadline_s = time.monotonic() + 10
        while worker.pid is not None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert worker.pid is None
        assert worker.caption(toy_images["red"]).text == expected
        assert worker.pid not in (None, first)


def test_threads_take_turns_and_close_is_the_end(worker: WorkerCaptioner, toy_images: Images) -> None:
    images = [*toy_images.values()] * 3
    expected = [worker.caption(image).text for image in images]
    with ThreadPoolExecutor(6) as pool:
        assert [caption.text for caption in pool.map(worker.caption, images)] == expected
    pid = worker.pid
    assert pid is not None
    worker.close()
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ClosedError):
        worker.caption(toy_images["red"])


def test_it_ends_with_its_owner(tiny_bundle: Path) -> None:
    code = (
        "import numpy, os, sys; from tellapart import WorkerCaptioner; "
        f"w = WorkerCaptioner.open({str(tiny_bundle)!r}); w.caption(numpy.zeros((8, 8, 3), 'uint8')); "
        "print(w.pid, flush=True); os._exit(0)"
    )
    rooms = str(Path(__file__).parents[2] / "sdk")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": rooms},
    )
    pid = int(done.stdout)
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s and _lives(pid):
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_records_bring_back_what_they_were_made_from(toy_images: Images) -> None:
    image = image_from(to_image(toy_images["red_blue"]))
    assert np.array_equal(image, toy_images["red_blue"])
    stream = io.BytesIO()
    Image.fromarray(toy_images["red"]).save(stream, "PNG")
    assert image_from(to_image(stream.getvalue())) == stream.getvalue()
    caption = UnsureCaption(text="A", token_ids=(1, 2), mean_logprob=-1.5, confidence=0.1, truncated=True)
    assert caption_from(to_caption(caption)) == caption
    assert isinstance(caption_from(to_caption(caption)), UnsureCaption)
    known = [getattr(errors, name) for name in errors.__all__ if name != "MissingExtraError"]
    for error in [kind("what happened") for kind in known] + [errors.MissingExtraError("cpu", "It needs x")]:
        back = error_from(to_error(error))
        assert (type(back), str(back)) == (type(error), str(error))
    assert type(error_from({"type": "os", "message": "m"})) is errors.TellapartError


@pytest.mark.parametrize("wrong", [{"idle_unload_s": 0}, {"timeout_s": -1}, {"timeout_s": float("inf")}])
def test_impossible_times_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        WorkerCaptioner.open(**wrong)  # type: ignore[arg-type]
