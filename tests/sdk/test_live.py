"""The live loop: the present wins, one scene is told once, and a camera may fail in any way it likes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tellapart import (
    Captioner,
    ClosedError,
    DecodeOptions,
    LiveCaptions,
    LiveOptions,
    SceneGate,
    SourceError,
    UsageError,
)
from tellapart.types import PixelArray

RED, GREEN, BLUE = ((250, 10, 10), (10, 230, 20), (5, 15, 240))
EACH = LiveOptions(look_every_s=0.0, wait=True)


def flat(colour: tuple[int, int, int]) -> PixelArray:
    return np.full((16, 16, 3), colour, np.uint8)


@pytest.fixture
def captioner(tiny_bundle: Path) -> Iterator[Captioner]:
    with Captioner.open(tiny_bundle) as opened:
        yield opened


def test_each_scene_is_told_once(captioner: Captioner) -> None:
    frames = [flat(RED)] * 4 + [flat(BLUE)] * 4 + [flat(RED)] * 3
    with LiveCaptions(captioner, frames, options=EACH) as live:
        results = list(live)
    assert [result.frame for result in results] == list(range(1, 12))
    assert [result.frame for result in results if result.caption] == [1, 6, 10]
    assert [result.state for result in results[4:7]] == ["changing", "new", "same"]
    texts = [result.caption.text for result in results if result.caption]
    assert texts == [captioner.caption(flat(colour)).text for colour in (RED, BLUE, RED)]
    assert (live.frames, live.dropped, live.captioned) == (11, 0, 3)
    assert results[1].similarity == pytest.approx(1.0)
    assert all(result.view is not None for result in results)


def test_the_latest_frame_wins_and_the_others_are_counted(captioner: Captioner) -> None:
    given, shown = threading.Event(), threading.Event()

    def camera() -> Iterator[PixelArray]:
        yield flat(RED)
        shown.wait(10)  # the loop works on the red frame now
        for colour in (GREEN, GREEN, GREEN, BLUE):
            yield flat(colour)
        given.set()

    gate = SceneGate(patience=0)
    with LiveCaptions(captioner, camera(), options=LiveOptions(look_every_s=0.0), gate=gate) as live:
        first = next(live)
        shown.set()
        assert given.wait(10)
        second = next(live)
        assert list(live) == []
    assert first.caption is not None
    assert second.caption is not None
    assert (first.frame, second.frame, second.dropped) == (1, 5, 3)
    assert second.caption.text == captioner.caption(flat(BLUE)).text
    assert (live.frames, live.dropped) == (5, 3)


def test_a_callable_is_a_camera_and_none_is_its_end(captioner: Captioner) -> None:
    frames = [flat(RED), flat(RED), None]
    with LiveCaptions(captioner, lambda: frames.pop(0), options=EACH) as live:
        assert [result.state for result in live] == ["new", "same"]
    assert frames == []


def test_looks_keep_their_distance_and_see_the_present(captioner: Captioner) -> None:
    stop = threading.Event()

    def camera() -> Iterator[PixelArray]:
        while not stop.is_set():
            yield flat(RED)
            time.sleep(0.002)

    with LiveCaptions(captioner, camera(), options=LiveOptions(look_every_s=0.15)) as live:
        started = time.monotonic()
        results = [next(live) for _ in range(4)]
        elapsed_s = time.monotonic() - started
        stop.set()
    assert elapsed_s >= 3 * 0.15
    assert all(result.dropped > 5 for result in results[1:])
    assert all(result.age_ms < 150 for result in results[1:])


def test_a_frame_that_is_no_image_is_told_and_the_rest_go_on(captioner: Captioner, tmp_path: Path) -> None:
    frames = [tmp_path / "gone.jpg", flat(RED)]
    with LiveCaptions(captioner, frames, options=EACH) as live:
        failed, good = list(live)
    assert (failed.state, good.state) == ("failed", "new")
    record = json.loads(json.dumps(failed.to_record(embedding=True)))
    assert record["error"]["type"] == "UnreadableImageError"
    assert "caption" not in record


def test_the_record_has_time_age_and_on_demand_the_embedding(captioner: Captioner) -> None:
    before = time.time()
    with LiveCaptions(captioner, [flat(RED)], options=EACH) as live:
        [result] = live
    record = json.loads(json.dumps(result.to_record(embedding=True)))
    assert before - 0.001 <= record["time"] <= time.time()
    assert 0 < record["age_ms"] < 60_000
    assert record["state"] == "new"
    assert record["elapsed_ms"]["vision"] > 0
    assert len(record["embedding"]) == captioner.retriever.width
    assert "embedding" not in result.to_record()


def test_the_deadline_counts_from_the_arrival_of_the_frame(captioner: Captioner) -> None:
    late = LiveOptions(look_every_s=0.0, wait=True, deadline_ms=0.001)
    with LiveCaptions(captioner, [flat(RED)], options=late) as live:
        [result] = live
    assert result.caption is not None
    assert result.caption.truncated
    assert len(result.caption.token_ids) == 1
    easy = LiveOptions(
        look_every_s=0.0, wait=True, deadline_ms=60_000, decode=DecodeOptions(beams=1, deadline_ms=50_000)
    )
    with LiveCaptions(captioner, [flat(RED)], options=easy) as live:
        [result] = live
    assert result.caption is not None
    assert not result.caption.truncated


def test_an_unchanged_scene_is_told_again_when_asked_to(captioner: Captioner) -> None:
    options = LiveOptions(look_every_s=0.0, wait=True, refresh_s=1e-6)
    with LiveCaptions(captioner, [flat(RED)] * 3, options=options) as live:
        results = list(live)
    assert [result.state for result in results] == ["new"] * 3
    assert results[2].similarity == pytest.approx(1.0)


def test_a_camera_that_fails_is_typed_after_what_it_gave(captioner: Captioner) -> None:
    released = []

    def camera() -> Iterator[PixelArray]:
        try:
            yield flat(RED)
            raise OSError("USB disconnect")
        finally:
            released.append(True)

    with LiveCaptions(captioner, camera(), options=EACH) as live:
        assert next(live).state == "new"
        with pytest.raises(SourceError, match="OSError: USB disconnect") as caught:
            next(live)
        assert isinstance(caught.value.__cause__, OSError)
        assert list(live) == []
    assert released == [True]
    assert captioner.caption(flat(RED)).text  # the captioner is none the worse


def test_a_camera_that_falls_silent_is_typed(captioner: Captioner) -> None:
    awake = threading.Event()

    def camera() -> PixelArray | None:
        awake.wait(30)
        return None

    options = LiveOptions(look_every_s=0.0, stall_s=0.05)
    started = time.monotonic()
    with LiveCaptions(captioner, camera, options=options) as live:
        with pytest.raises(SourceError, match=r"no frame for 0\.05 s"):
            next(live)
        awake.set()
    assert time.monotonic() - started < 10


def test_closing_from_another_thread_ends_the_loop_whatever_it_does(captioner: Captioner) -> None:
    closed = threading.Event()

    def camera() -> Iterator[PixelArray]:
        try:
            while True:
                yield flat(RED)
        finally:
            closed.set()

    refresh = LiveOptions(look_every_s=0.0, refresh_s=1e-6)  # captions all the time
    live = LiveCaptions(captioner, camera(), options=refresh)
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(live))
    thread.start()
    while len(seen) < 3:
        time.sleep(0.001)
    live.close()
    live.close()
    thread.join(10)
    assert not thread.is_alive()
    assert closed.wait(10)
    assert all(result.caption for result in seen)
    waiting = LiveCaptions(captioner, threading.Event().wait, options=LiveOptions(stall_s=None))
    thread = threading.Thread(target=lambda: seen.extend(waiting))
    thread.start()
    time.sleep(0.02)
    waiting._grabber.close(wait_s=0)  # that camera never answers, so there is no use in waiting for it
    thread.join(10)
    assert not thread.is_alive()


def test_the_captioner_closed_under_the_loop_is_an_end_or_an_error(tiny_bundle: Path) -> None:
    captioner = Captioner.open(tiny_bundle)
    with LiveCaptions(captioner, [flat(RED)] * 3, options=EACH) as live:
        next(live)
        captioner.close()
        with pytest.raises(ClosedError):
            next(live)
        assert list(live) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"look_every_s": -1.0},
        {"look_every_s": None},
        {"deadline_ms": 0.0},
        {"stall_s": float("nan")},
        {"refresh_s": -2.0},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        LiveOptions(**wrong)  # type: ignore[arg-type]


def test_frames_that_are_none_are_refused(captioner: Captioner) -> None:
    for wrong in ("photo.jpg", 3):
        with pytest.raises(UsageError, match="iterable or a callable"):
            LiveCaptions(captioner, wrong)  # type: ignore[arg-type]
