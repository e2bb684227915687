"""Captions of a bag: k look-alike images, each caption judged by whether it finds its own image.

Two modes:

plain
    Each image is captioned alone; the retriever only judges.

rerank
    Each image gets several candidate captions, made from that image alone. The retriever picks, image by
    image, the candidate with the largest margin: its cosine with the own image minus its best cosine with
    any other image of the bag. Among equal margins the candidate that the captioner finds likelier wins. So a
    caption that fits the own image a little less is taken where it fits the others much less; a candidate
    is never changed, only chosen.

The judge is the bundle's own retriever. Ranks and recall out of `rerank` are therefore what was optimised,
not an independent score: `tellapart truematch run --scorer` judges by another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import numpy as np

from tellapart.errors import UsageError
from tellapart.similarity import cosine, hits_at_1, margins, rank_of_own
from tellapart.types import BagResult, Caption, DecodeOptions, FloatArray

BagMode: TypeAlias = Literal["plain", "rerank"]
"""How the captions of a bag are made."""

RERANK_CANDIDATES = 5
"""Candidates per image in `rerank` where the options leave it open."""


def bag_options(options: DecodeOptions | None, mode: str) -> DecodeOptions:
    """Decoding options for a mode: `rerank` asks for several captions.

    Raises:
        UsageError: an unknown mode, or `rerank` with options that allow one candidate only.
    """
    options = options or DecodeOptions()
    if mode == "contrast":
        raise UsageError("mode 'contrast' comes in a later version of tellapart; use 'plain' or 'rerank'")
    if mode not in get_args(BagMode):
        raise UsageError(f"mode must be one of {', '.join(get_args(BagMode))}, got {mode!r}")
    if mode == "plain" or options.n_best > 1:
        return options
    if options.beams == 1 and options.temperature == 0:
        raise UsageError(
            "mode 'rerank' chooses among captions and beams=1 finds one; raise beams, or use 'plain'"
        )
    searched = options.temperature == 0 and options.beams is not None
    candidates = min(RERANK_CANDIDATES, options.beams or 1) if searched else RERANK_CANDIDATES
    # The margin chooses here; the likelier of equal ones must come first.
    return replace(options, n_best=candidates, rerank=0.0)


def judge_bag(
    candidates: Sequence[Sequence[Caption]],
    image_rows: FloatArray,
    embed_texts: Callable[[list[str]], FloatArray],
) -> BagResult:
    """Choose one caption per image by the largest margin, and score the choice.

    Args:
        candidates: per image one or more captions, likeliest first; with one each there is nothing to choose.
        image_rows: (k, d) float32, unit embeddings of the images.
        embed_texts: n texts -> (n, d) float32 unit rows.

    Returns:
        The chosen captions, the others of each image in its `alternatives`, and their scores; ties count
        against us.

    Raises:
        UsageError: fewer than two images.
    """
    count = len(candidates)
    if count < 2:
        raise UsageError(f"a bag needs at least two images to tell apart, got {count}; use caption for one")
    # Candidates of look-alike images are often the same words.
    texts = list(dict.fromkeys(caption.text for group in candidates for caption in group))
    row_of = {text: row for row, text in enumerate(texts)}
    scores = cosine(embed_texts(texts), image_rows)
    chosen: list[Caption] = []
    for own, group in enumerate(candidates):
        best = 0
        if len(group) > 1:
            asked = scores[[row_of[caption.text] for caption in group]]
            best = int(np.argmax(asked[:, own] - np.delete(asked, own, axis=1).max(axis=1)))
        flat = [replace(caption, alternatives=()) for caption in group]
        picked = flat.pop(best)
        chosen.append(replace(picked, alternatives=tuple(flat)))
    similarity = scores[[row_of[caption.text] for caption in chosen]]
    return BagResult(
        captions=tuple(chosen),
        ranks=tuple(int(rank) for rank in rank_of_own(similarity)),
        margins=tuple(float(margin) for margin in margins(similarity)),
        similarity=similarity,
        recall_at_1=float(hits_at_1(similarity).mean()),
    )
