"""What training minimises, as pure functions of tensors.

Axis letters: b captions, t token positions, V vocabulary, n images, m texts, d embedding width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""Label of a position that is not learnt from: padding."""


def caption_inputs_and_labels(ids: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """What the decoder reads and what it must say next.

    Args:
        ids: (b, t + 1) int64, each row `[CLS] ... [SEP]` padded at the end.
        pad_id: id of `[PAD]`.

    Returns:
        inputs (b, t) and labels (b, t) int64; labels of padding are `IGNORED`.
    """
    inputs, labels = ids[:, :-1], ids[:, 1:]
    return inputs, labels.masked_fill(labels == pad_id, IGNORED)


def mle_loss(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Summed cross-entropy in nats over the positions that count.

    A sum, because parts of a batch on several processes hold different numbers of tokens: the caller divides
    by the tokens of the whole batch.

    Args:
        logits: (b, t, V) of any float type; computed in float32.
        labels: (b, t) int64, `IGNORED` where nothing is learnt.
        label_smoothing: share of the target spread over the vocabulary.

    Returns:
        Scalar float32.
    """
    return functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


def positive_pairs(owners: Tensor, text_keys: Tensor, images: int) -> Tensor:
    """Which text is true of which image, as far as the batch tells.

    Args:
        owners: (m,) int64, the row of the image each text was written for.
        text_keys: (m,) int64, equal for identical texts.
        images: n.

    Returns:
        (m, n) bool; True where the text, or one with the same words, belongs to the image. Such a pair is
        never a
        negative: neither two captions of one image nor identical captions of two.
    """
    # As floats: no whole numbers are multiplied on a GPU.
    own = functional.one_hot(owners, images).float()  # (m, n)
    same_words = (text_keys[:, None] == text_keys[None, :]).float()  # (m, m)
    return (same_words @ own) > 0


def contrastive_loss(
    images: Tensor, texts: Tensor, owners: Tensor, text_keys: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE over (image, text) pairs in which only certain negatives count.

    Each text is paired with its own image. From image to text the softmax runs over that text and all texts
    that are not true of the image; from text to image over its image and all images it is not true of.

    Args:
        images: (n, d) unit rows.
        texts: (m, d) unit rows.
        owners: (m,) int64 row of each text's image.
        text_keys: (m,) int64, equal for identical texts.
        scale: scalar, inverse temperature.

    Returns:
        (loss, accuracy): scalars; accuracy is the share of texts whose own image scores above every negative
        one.
    """
    # Under autocast this product would be bfloat16, whose 8 bits cannot tell close similarities apart.
    with torch.autocast(device_type=texts.device.type, enabled=False):
        logits = scale * (texts.float() @ images.float().T)  # (m, n)
    positive = positive_pairs(owners, text_keys, images.shape[0])
    own = logits.gather(1, owners[:, None]).squeeze(1)  # (m,)
    # The dtype's lowest instead of -inf: a row without any negative keeps a finite gradient.
    negatives = logits.masked_fill(positive, torch.finfo(logits.dtype).min)
    per_text = torch.logsumexp(negatives, dim=1)  # (m,) over images
    per_image = torch.logsumexp(negatives, dim=0)[owners]  # (m,) over texts, for the image of each text
    to_image = torch.logaddexp(own, per_text) - own
    to_text = torch.logaddexp(own, per_image) - own
    accuracy = (own > negatives.max(dim=1).values).float().mean()
    return (to_image.mean() + to_text.mean()) / 2, accuracy


class _GatherRows(torch.autograd.Function):
    """All processes' rows, with the gradient of every process summed back to the owner."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order; differentiable. Every process must hold equally many.

    With each process computing the same loss from the gathered rows, the mean of gradients that data-parallel
    training takes equals the gradient of one process holding the whole batch.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def process_count() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes; not differentiable."""
    total = value.detach().clone()
    if process_count() > 1:
        dist.all_reduce(total)
    return total
