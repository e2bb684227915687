from __future__ import annotations

import numpy as np
import pytest

from tellapart_training.recall import recall_both_ways


def test_recall_counts_ranks_both_ways() -> None:
    # Texts 0 and 1 belong to image 0, text 2 to image 1, text 3 to image 2.
    similarity = np.array(
        [[0.9, 0.1, 0.2], [0.3, 0.5, 0.4], [0.8, 0.7, 0.1], [0.2, 0.6, 0.5]], dtype=np.float32
    )
    figures = recall_both_ways(similarity, np.array([0, 0, 1, 2]), at=(1, 2))
    assert figures["text_to_image_r1"] == 0.25  # ranks 1, 3, 2, 2
    assert figures["text_to_image_r2"] == 0.75
    assert figures["image_to_text_r1"] == 1.0  # best own 0.9, 0.7, 0.5 against 0.8, 0.6, 0.4
    swapped = similarity.copy()
    swapped[2, 0] = 0.95
    assert recall_both_ways(swapped, np.array([0, 0, 1, 2]), at=(1,))["image_to_text_r1"] == pytest.approx(
        2 / 3
    )


def test_constant_scores_are_misses() -> None:
    figures = recall_both_ways(np.zeros((4, 4), dtype=np.float32), np.arange(4), at=(1, 4))
    assert figures["text_to_image_r1"] == figures["image_to_text_r1"] == 0.0
    assert figures["text_to_image_r4"] == 1.0
