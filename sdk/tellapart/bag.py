"""Captions of a bag: look-alike images, each caption judged by whether it finds its own image.

Three modes:

contrast
    All images are decoded together. At every step an image's next-token scores are sharpened against those of
    the two images of the bag that look most like it, see `tellapart.contrast`. A plain beam search of each
    image alone adds what is likely. Of all these beams the one is taken that the captioner finds likely and
    borne out, and the retriever finds telling: the largest

        mean log-probability + 8 x cosine with the own image
        + 6 x log of the own image's chance, softmax over the bag of 5 x cosine
        + 0.2 x support by the plain beams

    which is pragmatic captioning with the captioner as speaker and the retriever as listener. The last term
    (`tellapart.support`) holds captions to what is there: a piece that few of the plain beams have costs up
    to 1.4 nats. Without it more is told apart and more invented.

    A bundle that knows how likely each piece is to be said of an image (`tellapart.presence`) has a better
    word in both: its captions weigh

        mean log-probability + 8 x cosine with the own image
        + 4 x log of the own image's chance, softmax over the bag of 5 x cosine
        + 6 x log of the own image's chance, softmax over the bag of 0.1 x presence
        + 0.8 x presence of the caption's pieces in the own image

    and there is more to choose from: beginnings of the beams that are captions themselves
    (`tellapart.shorten`), since what is invented mostly comes last.

    Either way no caption is given to two images while there is another: it could tell neither apart.

plain
    Each image is captioned alone; the retriever only judges.

rerank
    Each image gets several candidate captions, made from that image alone. The retriever picks, image by
    image, the candidate with the largest margin: its cosine with the own image minus its best cosine with
    any other image of the bag. Among equal margins the candidate that the captioner finds likelier wins. So a
    caption that fits the own image a little less is taken where it fits the others much less; a candidate
    is never changed, only chosen.

The judge is the bundle's own retriever. Ranks and recall out of `contrast` and `rerank` are therefore what
was optimised, not an independent score: `tellapart truematch run --scorer` judges by another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import numpy as np

from tellapart.contrast import DUPLICATE
from tellapart.decode import log_softmax
from tellapart.errors import UsageError
from tellapart.presence import Presence
from tellapart.similarity import RealArray, cosine, hits_at_1, margins, rank_of_own
from tellapart.support import support
from tellapart.types import BagResult, Caption, DecodeOptions, FloatArray

BagMode: TypeAlias = Literal["contrast", "rerank", "plain"]
"""How the captions of a bag are made."""

RERANK_CANDIDATES = 5
"""Candidates per image in `rerank` where the options leave it open."""

CONTRAST_BEAMS = 4
"""Steered beams per image in `contrast` where the options leave it open: as many as keep it within 1.5 times
the cost of `plain`; a fifth tells no more apart."""

SPOKEN_BEAMS = 10
"""Plain beams per image in `contrast` where the options leave it open."""

LISTENER_SHARPNESS = 5.0
"""What cosines are multiplied by before the softmax over a bag. So soft that all images of the bag count,
not only the nearest one."""

LISTENER_WEIGHT = 6.0
"""Of the log of the own image's chance, against nats per piece. The numbers of this rule were chosen on bags
of training photos that no run learnt from, under a judge that had no part in training or decoding; this one
was 8 there and lowered on `val`: docs/runtime.md has the figures of more and less."""

FIT_WEIGHT = 8.0
"""Of the cosine of caption and own image, against nats per piece."""

SUPPORT_WEIGHT = 0.2
"""Of the support by the plain beams, see `tellapart.support`, against nats per piece."""

PRESENCE_WEIGHT = 0.8
"""Of the presence of a caption's pieces, in the place of support, against nats per piece. The numbers of the
rule with presence were chosen on the same held-back photos as those of the rule without."""

PRESENCE_SHARPNESS = 0.1
"""What presences are multiplied by before the softmax over a bag."""

PRESENCE_LISTENER_WEIGHT = 6.0
"""Of the log of the own image's chance by presence, against nats per piece."""

LISTENER_WEIGHT_BESIDE_PRESENCE = 4.0
"""What `LISTENER_WEIGHT` is where presence has a word too."""


def bag_options(options: DecodeOptions | None, mode: str) -> DecodeOptions:
    """Decoding options for a mode: `rerank` and `contrast` ask for several captions.

    Raises:
        UsageError: an unknown mode, `rerank` with options that allow one candidate only, or `contrast` with
            options that sample or guide.
    """
    options = options or DecodeOptions()
    if mode not in get_args(BagMode):
        raise UsageError(f"mode must be one of {', '.join(get_args(BagMode))}, got {mode!r}")
    if mode == "contrast":
        if options.temperature > 0:
            raise UsageError(
                f"mode 'contrast' searches and temperature={options.temperature:g} samples; leave it out, or "
                "use 'rerank' or 'plain'"
            )
        if options.guidance != 1:
            raise UsageError(
                f"mode 'contrast' steers by the other images and guidance={options.guidance:g} by none "
                "at all; leave guidance out, or use 'rerank' or 'plain'"
            )
        beams = options.beams or max(CONTRAST_BEAMS, options.n_best)
        return replace(options, beams=beams, n_best=beams)
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


def spoken_options(options: DecodeOptions | None) -> DecodeOptions:
    """The caller's options for the plain search beside a steered one: as many beams, all of them wanted."""
    options = options or DecodeOptions()
    beams = options.beams or max(SPOKEN_BEAMS, options.n_best)
    return replace(options, beams=beams, n_best=beams, rerank=0.0, confidence=False, min_confidence=None)


def judge_bag(
    candidates: Sequence[Sequence[Caption]],
    image_rows: FloatArray,
    embed_texts: Callable[[list[str]], FloatArray],
    *,
    mode: BagMode = "rerank",
    spoken: Sequence[Sequence[Caption]] = (),
    presence: Presence | None = None,
) -> BagResult:
    """Choose one caption per image by the rule of the mode, and score the choice.

    Args:
        candidates: per image one or more captions, likeliest first; with one each there is nothing to choose.
        image_rows: (k, d) float32, unit embeddings of the images.
        embed_texts: n texts -> (n, d) float32 unit rows.
        mode: "contrast" weighs likelihood, support or presence, and retriever; others take the largest
            margin.
        spoken: in "contrast", the plain beams of each image, which are candidates too and say what is borne
            out; without them the candidates themselves say it.
        presence: of the bundle, if it has one; in "contrast" it says what is borne out, not the beams.

    Returns:
        The chosen captions, the others of each image in its `alternatives`, and their scores; ties count
        against us. One image alone has rank 1 and a margin of infinity: nothing is there to confuse it with.

    Raises:
        UsageError: no image.
        ShapeError: a presence that was fitted to other embeddings.
    """
    if not candidates:
        raise UsageError("a bag needs at least one image, got none")
    beside = spoken or candidates
    if spoken:
        candidates = [_merged(plain, group) for plain, group in zip(spoken, candidates, strict=True)]
    # Candidates of look-alike images are often the same words.
    texts = list(dict.fromkeys(caption.text for group in candidates for caption in group))
    row_of = {text: row for row, text in enumerate(texts)}
    scores = cosine(embed_texts(texts), image_rows)
    there: list[RealArray] = []
    if mode == "contrast" and presence is not None:
        sums = presence.borne_out([caption for group in candidates for caption in group], image_rows)
        there = np.split(sums, np.cumsum([len(group) for group in candidates])[:-1])
    worths: list[RealArray] = []
    for own, group in enumerate(candidates):
        asked = scores[[row_of[caption.text] for caption in group]]
        if there:
            worths.append(_worth_by_presence(group, asked, own, there[own]))
        else:
            worths.append(_worth(group, beside[own], asked, own, mode))
    places = [int(np.argmax(worth)) for worth in worths]
    if mode == "contrast":
        places = choose_apart(
            worths, [[caption.text for caption in group] for group in candidates], image_rows
        )
    chosen: list[Caption] = []
    for place, group in zip(places, candidates, strict=True):
        flat = [replace(caption, alternatives=()) for caption in group]
        picked = flat.pop(place)
        chosen.append(replace(picked, alternatives=tuple(flat)))
    similarity = scores[[row_of[caption.text] for caption in chosen]]
    alone = len(chosen) == 1
    return BagResult(
        captions=tuple(chosen),
        ranks=(1,) if alone else tuple(int(rank) for rank in rank_of_own(similarity)),
        margins=(math.inf,) if alone else tuple(float(margin) for margin in margins(similarity)),
        similarity=similarity,
        recall_at_1=1.0 if alone else float(hits_at_1(similarity).mean()),
    )


def choose_apart(
    worths: Sequence[RealArray], texts: Sequence[Sequence[str]], image_rows: FloatArray
) -> list[int]:
    """The candidate of each image that is worth most, no text for two images while there is another one.

    Where several images want one text, it goes to the one that would lose most by its next choice. Images
    that cannot be told apart may share.

    Args:
        worths: per image of its candidates, higher is better.
        texts: of the candidates, each text once an image.
        image_rows: (k, d) float32, unit rows.

    Returns:
        Per image the place of its candidate.
    """
    same = image_rows @ image_rows.T > DUPLICATE
    order = [np.argsort(-worth, kind="stable") for worth in worths]
    chosen: dict[int, int] = {}
    owners: dict[str, list[int]] = {}
    while len(chosen) < len(texts):
        wanted: dict[str, list[tuple[float, int, int]]] = {}
        for image in (image for image in range(len(texts)) if image not in chosen):
            free = [
                int(place)
                for place in order[image]
                if all(same[image, owner] for owner in owners.get(texts[image][place], ()))
            ]
            best = free[0] if free else int(order[image][0])
            next_best = worths[image][free[1]] if len(free) > 1 else -np.inf
            loss = float(worths[image][best] - next_best)
            wanted.setdefault(texts[image][best], []).append((loss, -image, best))
        for text, asking in wanted.items():
            _, image, place = max(asking)
            chosen[-image] = place
            owners.setdefault(text, []).append(-image)
    return [chosen[image] for image in range(len(texts))]


def _merged(plain: Sequence[Caption], others: Sequence[Caption]) -> list[Caption]:
    """Both, each text once, the plain ones first."""
    first: dict[str, Caption] = {}
    for caption in (*plain, *others):
        first.setdefault(caption.text, caption)
    return list(first.values())


def _worth(
    group: Sequence[Caption], spoken: Sequence[Caption], scores: FloatArray, own: int, mode: BagMode
) -> RealArray:
    """What each candidate of one image is worth, (n,); `scores` are its cosines with the images, (n, k)."""
    if mode != "contrast":
        others = np.delete(scores, own, axis=1)
        return np.asarray(scores[:, own] - others.max(axis=1, initial=-np.inf), np.float64)
    listener = log_softmax(LISTENER_SHARPNESS * scores)[:, own]
    likely = np.array([caption.mean_logprob for caption in group])
    fit = scores[:, own].astype(np.float64)
    borne_out = support(group, spoken)
    return likely + FIT_WEIGHT * fit + LISTENER_WEIGHT * listener + SUPPORT_WEIGHT * borne_out


def _worth_by_presence(
    group: Sequence[Caption], scores: FloatArray, own: int, presence: RealArray
) -> RealArray:
    """The same in "contrast" with a presence, whose sums for each candidate and image are (n, k)."""
    listener = log_softmax(LISTENER_SHARPNESS * scores)[:, own]
    told = log_softmax(np.asarray(PRESENCE_SHARPNESS * presence, np.float32))[:, own]
    likely = np.array([caption.mean_logprob for caption in group])
    fit = scores[:, own].astype(np.float64)
    worth = likely + FIT_WEIGHT * fit + LISTENER_WEIGHT_BESIDE_PRESENCE * listener
    worth += PRESENCE_LISTENER_WEIGHT * told + PRESENCE_WEIGHT * presence[:, own]
    return np.asarray(worth, np.float64)
