"""What can go wrong under a running app: each end is typed, and nothing that was done is lost.

A full disk is in `test_bulk`, a camera that stops in `test_live`, a worker that dies in
`test_worker_captioner`, a closed stream in `test_captioner`.
"""

from __future__ import annotations

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import (
    BackendError,
    BundleIntegrityError,
    Captioner,
    ClosedError,
    DecodeOptions,
    RuntimeOptions,
)
from tellapart.graphs import DecoderGraph

Images = dict[str, np.ndarray]


def test_closing_while_others_caption_ends_them_with_a_caption_or_a_closed_error(
    tiny_bundle: Path, toy_images: Images
) -> None:
    for _ in range(5):
        captioner = Captioner.open(tiny_bundle)
        expected = captioner.caption(toy_images["red_blue"]).token_ids
        begun = threading.Barrier(5)

        def work(captioner: Captioner = captioner, begun: threading.Barrier = begun) -> list[Any]:
            found: list[Any] = []
            begun.wait(10)
            try:
                while True:
                    found.append(captioner.caption(toy_images["red_blue"]).token_ids)
            except ClosedError as closed:
                found.append(closed)
            return found

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(work) for _ in range(4)]
            begun.wait(10)
            time.sleep(0.05)
            captioner.close()
            for future in running:
                *captions, error = future.result(20)
                assert isinstance(error, ClosedError)
                assert all(ids == expected for ids in captions)


def test_closing_from_another_thread_cuts_a_search_short(
    tiny_bundle: Path, toy_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = Captioner.open(tiny_bundle)
    captioner.caption(toy_images["red"])
    step, steps = DecoderGraph.step, []

    def slow(self: DecoderGraph, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            captioner.close()  # as another thread would, between two words
        return step(self, *arguments)

    monkeypatch.setattr(DecoderGraph, "step", slow)
    with pytest.raises(ClosedError):
        captioner.caption(toy_images["red_blue"], options=DecodeOptions(beams=3))
    assert len(steps) == 2


def test_a_deadline_that_passes_gives_what_was_found(
    tiny_bundle: Path, toy_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DecoderGraph.step

    def slow(self: DecoderGraph, *arguments: Any) -> Any:
        time.sleep(0.03)
        return step(self, *arguments)

    monkeypatch.setattr(DecoderGraph, "step", slow)
    with Captioner.open(tiny_bundle) as captioner:
        captioner.look(toy_images["red_blue"])
        started_s = time.monotonic()
        caption = captioner.caption(
            toy_images["red_blue"], options=DecodeOptions(deadline_ms=50, min_new_tokens=8, max_new_tokens=8)
        )
        assert time.monotonic() - started_s < 1
        assert caption.truncated
        assert 1 <= len(caption.token_ids) < 8


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that may be taken away."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_a_model_removed_before_its_first_use_is_typed(copy: Path, toy_images: Images) -> None:
    with Captioner.open(copy) as captioner:
        (copy / "decoder.onnx").unlink()
        view = captioner.look(toy_images["red"])  # vision is still there
        for _ in range(2):
            with pytest.raises(BundleIntegrityError, match=r"decoder\.onnx can no longer be read"):
                captioner.caption(view)


def test_a_model_removed_under_a_running_app_does_not_matter_until_it_is_opened_again(
    copy: Path, toy_images: Images
) -> None:
    with Captioner.open(copy, runtime=RuntimeOptions(idle_unload_s=0.3)) as captioner:
        expected = captioner.caption(toy_images["red"]).token_ids
        shutil.rmtree(copy)
        assert captioner.caption(toy_images["red"]).token_ids == expected
        graphs = captioner._engine._here().graphs
        deadline_s = time.monotonic() + 10
        while graphs and time.monotonic() < deadline_s:
            time.sleep(0.01)
        with pytest.raises(BundleIntegrityError, match="open the bundle again"):
            captioner.caption(toy_images["red"])


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "QNNExecutionProvider", "NoSuchProvider"])
def test_a_provider_that_is_not_there_lists_what_is(tiny_bundle: Path, provider: str) -> None:
    from tellapart.backends.ort import available_providers

    if provider in available_providers():
        pytest.skip(f"{provider} is here")
    with pytest.raises(BackendError, match="CPUExecutionProvider") as caught:
        Captioner.open(tiny_bundle, runtime=RuntimeOptions(providers=(provider,)))
    assert provider in str(caught.value)
