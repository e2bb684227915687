"""Fluency against the language-model loss that training computes, text by text."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tellapart.errors import CheckpointError  # noqa: E402
from tellapart_training.losses import caption_inputs_and_labels, mle_loss  # noqa: E402
from tellapart_training.metrics.fluency import open_language_model  # noqa: E402
from tellapart_training.pair import no_image, open_pair  # noqa: E402

pytestmark = pytest.mark.train

TEXTS = ["a red dog runs", "dog", "A man with a ball on green grass.", "cat cat cat", ""]


def test_it_is_the_loss_of_each_text_on_its_own(toy_world: Path) -> None:
    pair = open_pair(toy_world / "init")
    expected = []
    for text in ("a red dog runs", "dog", "a man with a ball on green grass", "cat cat cat", ""):
        ids = torch.tensor([pair.encode(text)])
        inputs, labels = caption_inputs_and_labels(ids, pair.tokenizer.pad_id)
        with torch.inference_mode():
            logits = pair.network.decoder(inputs, no_image(pair, 1, torch.device("cpu")))
            expected.append((-float(mle_loss(logits, labels)), ids.shape[1] - 1))
    model = open_language_model(toy_world / "init")
    for batch_size in (1, 2, 256):  # padding must not count
        found = model.likelihoods(TEXTS, batch_size=batch_size)
        assert [each.pieces for each in found] == [pieces for _, pieces in expected]
        assert [each.logprob for each in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert found[-1].pieces == 1  # the end piece alone
    total, pieces = map(sum, zip(*expected, strict=True))
    assert model.fluency(TEXTS) == pytest.approx(total / pieces, abs=1e-5)


def test_no_texts_and_no_checkpoint(toy_world: Path, tmp_path: Path) -> None:
    assert open_language_model(toy_world / "init").fluency([]) == 0.0
    with pytest.raises(CheckpointError):
        open_language_model(tmp_path)
