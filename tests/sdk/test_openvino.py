"""The OpenVINO backend against onnxruntime on the same graphs, and what it refuses."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart import Captioner, DecodeOptions, Retriever, RuntimeOptions
from tellapart.backends import open_session
from tellapart.bundle import Bundle, open_bundle, write_bundle
from tellapart.errors import BackendError, BundleIntegrityError, ClosedError, MissingExtraError

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")

OPENVINO = RuntimeOptions(backend="openvino")


@pytest.fixture(scope="module")
def both(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with graphs for both runtimes."""
    return convert(tiny_bundle, tmp_path_factory.mktemp("both"), keep_onnx=True)


def convert(bundle: Path, folder: Path, *, keep_onnx: bool) -> Path:
    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    shutil.copytree(bundle, folder, dirs_exist_ok=True)
    (folder / "tellapart.json").unlink()
    pages = []
    for graph in manifest.graphs:
        model = openvino.Core().read_model(str(folder / graph.file))
        openvino.save_model(model, str(folder / f"{graph.role}.xml"), compress_to_fp16=False)
        pages.append(dataclasses.replace(graph, target="openvino", file=f"{graph.role}.xml"))
        if not keep_onnx:
            (folder / graph.file).unlink()
    graphs = (*manifest.graphs, *pages) if keep_onnx else tuple(pages)
    write_bundle(folder, dataclasses.replace(manifest, graphs=graphs, files={}))
    return folder


def test_captions_and_rows_are_those_of_onnxruntime(both: Path, toy_images: dict[str, Any]) -> None:
    images = list(toy_images.values())
    options = DecodeOptions(beams=3, max_new_tokens=20)
    with Captioner.open(both, runtime=OPENVINO) as ours, Captioner.open(both) as theirs:
        assert ours._engine.vision().session.backend == "openvino"
        assert theirs._engine.vision().session.backend == "onnxruntime"
        found = [caption.token_ids for caption in ours.caption_many(images, options=options, batch_size=4)]
        assert found == [theirs.caption(image, options=options).token_ids for image in images]
    with Retriever.open(both, runtime=OPENVINO) as ours_too, Retriever.open(both) as theirs_too:
        texts = ["a red square", "", "blue"] * 5
        for name in ("embed_images", "embed_texts"):
            given = images if name == "embed_images" else texts
            np.testing.assert_allclose(
                getattr(ours_too, name)(given), getattr(theirs_too, name)(given), atol=1e-5
            )


def test_auto_takes_it_where_nothing_else_can(
    tiny_bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    both: Path,
) -> None:
    alone = convert(tiny_bundle, tmp_path, keep_onnx=False)
    with caplog.at_level(logging.INFO, "tellapart"), Captioner.open(alone) as captioner:
        assert captioner._engine.vision().session.backend == "openvino"
    assert "no graphs for onnxruntime" in caplog.text
    with pytest.raises(BackendError, match="only for openvino"):
        Captioner.open(alone, runtime=RuntimeOptions(backend="onnxruntime"))
    monkeypatch.setattr("tellapart.backends._is_installed", lambda name: name != "onnxruntime")
    caplog.clear()
    with caplog.at_level(logging.INFO, "tellapart"), Captioner.open(both) as captioner:
        assert captioner._engine.vision().session.backend == "openvino"
    assert "onnxruntime is not installed" in caplog.text


def test_without_its_package_the_answer_is_the_install_command(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r'pip install "tellapart\[openvino\]"'):
        Captioner.open(both, runtime=OPENVINO)


def test_a_device_that_is_not_there(both: Path) -> None:
    with pytest.raises(BackendError, match=r"has .*CPU.*; NOSUCH was asked for"):
        Captioner.open(both, runtime=RuntimeOptions(backend="openvino", providers=("NOSUCH",)))
    with pytest.raises(BackendError, match="one device"):
        Captioner.open(both, runtime=RuntimeOptions(backend="openvino", providers=("CPU", "CPU")))


def test_settings_of_a_device(both: Path) -> None:
    def opened(**settings: str) -> RuntimeOptions:
        return RuntimeOptions(backend="openvino", providers=("CPU",), provider_options={"CPU": settings})

    with open_bundle(both) as bundle:
        pixels = {"pixels": np.zeros((1, 16, 16, 3), np.uint8)}
        wanted = open_session(bundle, "vision", OPENVINO).run(pixels)
        session = open_session(bundle, "vision", opened(PERFORMANCE_HINT="LATENCY", NUM_STREAMS="1"))
        np.testing.assert_allclose(session.run(pixels)["embedding"], wanted["embedding"], atol=1e-6)
        with pytest.raises(BackendError, match=r"refuses vision\.xml"):
            open_session(bundle, "vision", opened(NO_SUCH_SETTING="1"))


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"pixels": np.zeros((1, 9, 9, 3), np.uint8)},
        {"pixels": np.zeros((1, 16, 16, 3), np.float32)},
        {"pixels": np.zeros((16, 16, 3), np.uint8)},
        {"pixels": np.zeros((1, 16, 16, 3), np.uint8), "more": np.zeros(1)},
    ],
)
def test_wrong_inputs_become_a_backend_error(both: Path, feeds: dict[str, Any]) -> None:
    with open_bundle(both) as bundle:
        session = open_session(bundle, "vision", OPENVINO)
        with pytest.raises(BackendError, match="vision graph of"):
            session.run(feeds)
        assert session.run_quietly(feeds) is None


def test_threads_do_not_mix_their_answers(both: Path) -> None:
    with open_bundle(both) as bundle:
        side = bundle.manifest.preprocessing.image_px
        session = open_session(bundle, "vision", OPENVINO)
        pixels = np.random.default_rng(0).integers(0, 256, (24, 1, side, side, 3)).astype(np.uint8)

        def look(photo: Any) -> Any:
            return session.run({"pixels": photo})["embedding"]

        wanted = [look(photo) for photo in pixels]
        assert not np.array_equal(wanted[0], wanted[1])
        with ThreadPoolExecutor(4) as pool:
            for one, other in zip(wanted, pool.map(look, pixels), strict=True):
                np.testing.assert_array_equal(one, other)
        session.close()
        session.close()
        with pytest.raises(ClosedError):
            look(pixels[0])


def test_weights_that_changed_meanwhile_are_not_read(both: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(both, copied)
    with open_bundle(copied) as bundle:
        content = bytearray((copied / "vision.bin").read_bytes())
        content[-1] ^= 1
        (copied / "vision.bin").write_bytes(content)
        with pytest.raises(BundleIntegrityError, match=r"vision\.bin changed"):
            open_session(bundle, "vision", OPENVINO)


def test_a_graph_of_garbage_is_a_backend_error(both: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(both, copied)
    (copied / "vision.xml").write_text("<net/>", encoding="utf-8")
    with open_bundle(both) as bundle:
        manifest = bundle.manifest
    (copied / "tellapart.json").unlink()
    write_bundle(copied, dataclasses.replace(manifest, files={}))
    opened: Bundle
    with open_bundle(copied) as opened, pytest.raises(BackendError, match=r"OpenVINO refuses vision\.xml"):
        open_session(opened, "vision", OPENVINO)
