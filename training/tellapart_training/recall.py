"""Recall of one's own image among all, and of one of one's captions among all; numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def recall_both_ways(
    similarity: npt.NDArray[np.float32], owners: npt.NDArray[np.int64], *, at: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """R@k from text to image and from image to text.

    Args:
        similarity: (m, n) float32, row = text, column = image.
        owners: (m,) int64, the column each text was written for.
        at: values of k.

    Returns:
        `text_to_image_r1`... the share of texts whose own image is among the best k, and
        `image_to_text_r1`... the share of images with at least one own text among the best k texts. An equal
        score counts against.
    """
    texts, images = similarity.shape
    own = similarity[np.arange(texts), owners]  # (m,)
    # An equal other ranks ahead, so that constant embeddings score zero and not one.
    text_ranks = (similarity >= own[:, None]).sum(axis=1) - 1  # (m,) others at least as good
    figures = {f"text_to_image_r{k}": float((text_ranks < k).mean()) for k in at}
    best_own = np.full(images, -np.inf, dtype=np.float32)
    np.maximum.at(best_own, owners, own)
    foreign = np.where(owners[:, None] == np.arange(images)[None, :], -np.inf, similarity)
    image_ranks = (foreign >= best_own[None, :]).sum(axis=0)  # (n,) foreign texts at least as good
    figures.update({f"image_to_text_r{k}": float((image_ranks < k).mean()) for k in at})
    return figures
