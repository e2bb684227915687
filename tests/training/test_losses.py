"""Losses against the slow and obvious way of computing them."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from tellapart_training.losses import (  # noqa: E402
    IGNORED,
    caption_inputs_and_labels,
    contrastive_loss,
    mle_loss,
    positive_pairs,
)

pytestmark = pytest.mark.train


def test_labels_are_the_next_tokens_and_padding_is_ignored() -> None:
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    inputs, labels = caption_inputs_and_labels(ids, pad_id=0)
    assert inputs.tolist() == [[2, 7, 8], [2, 9, 3]]
    assert labels.tolist() == [[7, 8, 3], [9, 3, IGNORED]]


def test_mle_loss_sums_over_real_tokens_only() -> None:
    logits = torch.zeros(1, 3, 5)
    labels = torch.tensor([[1, 2, IGNORED]])
    assert float(mle_loss(logits, labels)) == pytest.approx(2 * math.log(5), rel=1e-6)
    changed = logits.clone()
    changed[0, 2] = torch.tensor([9.0, -9, 0, 1, 2])
    assert torch.equal(mle_loss(changed, labels), mle_loss(logits, labels))
    peaked = torch.tensor([[[4.0, 0, 0, 0, 0]]])
    log_probs = peaked[0, 0].log_softmax(-1)
    expected = -(0.9 * log_probs[0] + 0.1 * log_probs.mean())
    assert float(mle_loss(peaked, torch.tensor([[0]]), label_smoothing=0.1)) == pytest.approx(
        float(expected), rel=1e-6
    )


def _slow_contrast(images: object, texts: object, owners: list[int], keys: list[int], scale: float) -> float:
    similarity = (scale * texts @ images.T).tolist()  # type: ignore[operator, attr-defined]
    count = len(similarity[0])
    true = [
        {owners[other] for other in range(len(keys)) if keys[other] == keys[text]}
        for text in range(len(keys))
    ]
    to_image, to_text = [], []
    for text, owner in enumerate(owners):
        own = math.exp(similarity[text][owner])
        others = sum(math.exp(similarity[text][image]) for image in range(count) if image not in true[text])
        to_image.append(-math.log(own / (own + others)))
        foreign = sum(
            math.exp(similarity[other][owner]) for other in range(len(keys)) if owner not in true[other]
        )
        to_text.append(-math.log(own / (own + foreign)))
    return (sum(to_image) / len(to_image) + sum(to_text) / len(to_text)) / 2


def test_contrastive_loss_equals_the_loops_with_shared_captions() -> None:
    generator = torch.Generator().manual_seed(0)
    images = functional.normalize(torch.randn(4, 8, generator=generator, dtype=torch.float64), dim=1)
    texts = functional.normalize(torch.randn(8, 8, generator=generator, dtype=torch.float64), dim=1)
    owners, keys = (
        [0, 0, 1, 1, 2, 2, 3, 3],
        [10, 11, 12, 10, 14, 15, 16, 17],
    )  # texts 0 and 3 have the same words
    loss, accuracy = contrastive_loss(
        images, texts, torch.tensor(owners), torch.tensor(keys), torch.tensor(5.0, dtype=torch.float64)
    )
    assert float(loss) == pytest.approx(_slow_contrast(images, texts, owners, keys, 5.0), rel=1e-5)
    assert 0 <= float(accuracy) <= 1


def test_captions_of_one_image_and_equal_captions_are_never_negatives() -> None:
    owners, keys = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 2, 3])
    assert positive_pairs(owners, keys, 3).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]
    # Moving a sibling's text, or an equal text's image, must leave the loss of the pair at hand unchanged.
    images = functional.normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    texts = images[[0, 0]].clone().requires_grad_()
    loss, _ = contrastive_loss(
        images[:1], texts, torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor(10.0)
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(texts.grad.abs().max()) == 0.0
    same, _ = contrastive_loss(images, images, torch.tensor([0, 1]), torch.tensor([5, 5]), torch.tensor(10.0))
    assert float(same) == pytest.approx(0.0, abs=1e-6)
    apart, _ = contrastive_loss(
        images, images, torch.tensor([0, 1]), torch.tensor([5, 6]), torch.tensor(10.0)
    )
    assert float(apart) > 1e-6
