"""The retriever's word in which of an image's candidate captions comes first.

A captioner ranks its candidates by how likely they are, which favours what fits many images. The bundle's own
retriever knows which of them fits this one. The sum of both chooses: mean log-probability per piece plus
weight x cosine of caption and image. No other image is asked, so this works for one photo; to choose against
look-alikes, see `tellapart.bag`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from tellapart.retriever import Retriever
from tellapart.types import Caption, View


def rerank(
    captions: Sequence[Caption], view: View, retriever: Retriever, *, weight: float
) -> list[tuple[Caption, float]]:
    """Candidate captions of one image, best first by likelihood and fit together.

    Args:
        captions: likeliest first, which decides between equal sums.
        view: of the image, from the retriever's bundle.
        retriever: embeds image and captions.
        weight: of the cosine, against nats per piece; 0 keeps the order by likelihood.

    Returns:
        The same captions, "rerank" added to `elapsed_ms`, each with its cosine.

    Raises:
        BundleError: the bundle is no retriever.
        BackendError: the runtime failed.
    """
    started = time.perf_counter()
    fits = retriever.embed_texts([caption.text for caption in captions]) @ retriever.embed_images([view])[0]
    sums = [caption.mean_logprob + weight * float(fit) for caption, fit in zip(captions, fits, strict=True)]
    order = sorted(range(len(captions)), key=lambda place: -sums[place])
    elapsed_ms = (time.perf_counter() - started) * 1000.0
    return [
        (
            replace(captions[place], elapsed_ms={**captions[place].elapsed_ms, "rerank": elapsed_ms}),
            float(fits[place]),
        )
        for place in order
    ]
