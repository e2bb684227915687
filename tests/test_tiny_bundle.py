"""The committed tiny bundle is what its script makes, and its captions depend on the image and end."""

from __future__ import annotations

import numpy as np
import pytest

from tellapart.bundle import open_bundle

pytestmark = pytest.mark.train  # the script needs onnx, which the SDK's environment lacks


def test_the_script_makes_the_committed_bundle_again(tiny_bundle, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    import make_tiny_bundle

    make_tiny_bundle.main(tmp_path / "again")
    for path in sorted(tiny_bundle.iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_captions_differ_between_images_and_end(tiny_bundle, toy_images):
    runtime = pytest.importorskip("onnxruntime")
    with open_bundle(tiny_bundle) as bundle:
        sessions = {
            role: runtime.InferenceSession(
                bundle.read_bytes(bundle.graph(role).file), providers=["CPUExecutionProvider"]
            )
            for role in ("vision", "decoder")
        }
    captions = {}
    for name, image in toy_images.items():
        pixels = np.broadcast_to(image[:1, :1], (1, 16, 16, 3)).copy()
        pixels[0, :, 8:] = image[-1, -1]
        cross, _ = sessions["vision"].run(None, {"pixels": pixels})
        ids, past = [2], np.zeros((4, 1, 2, 0, 4), np.float32)
        while ids[-1] != 3:
            assert len(ids) < 16, f"the caption of {name} does not end"
            feeds = {"ids": np.array([[ids[-1]]]), "past_kv": past, "cross_kv": cross}
            logits, past = sessions["decoder"].run(None, feeds)
            ids.append(int(logits.argmax()))
        captions[name] = tuple(ids)
    assert len(set(captions.values())) == len(toy_images)
