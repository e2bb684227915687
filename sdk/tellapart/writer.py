"""From what was seen to captions: the search over the decoder, then words, order and confidence.

`Captioner` is the face of this; here nothing is opened, closed or checked for who may use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tellapart.beams import beam_search
from tellapart.confidence import with_confidence
from tellapart.contrast import Contrast, ContrastCache, choose_partners, contrast_step, sharpen
from tellapart.decode import CacheT, Guide, Hypothesis, Step, greedy, is_plain, sample, stream
from tellapart.engine import Engine
from tellapart.graphs import GreedyGraph
from tellapart.guidance import guide_by, guided_cache
from tellapart.kv_cache import KVCache
from tellapart.manifest_confidence import Calibration
from tellapart.plan import DecodePlan
from tellapart.rerank import rerank
from tellapart.retriever import Retriever
from tellapart.shorten import shortened
from tellapart.types import Caption, FloatArray, View

_SPOKEN_TOGETHER = 8  # images whose plain beams are searched side by side


def write_captions(
    engine: Engine,
    retriever: Callable[[], Retriever],
    views: Sequence[View],
    plan: DecodePlan,
    *,
    check_open: Callable[[], None],
) -> Iterator[Caption]:
    """Captions of views, each from its own image; lazily where they are decoded one by one.

    Args:
        engine: its decoder and tokenizer.
        retriever: gives the one that chooses among candidates, where the plan says so.
        views: of the engine's bundle.
        plan: how to search.
        check_open: called before each group of views; raises where its owner was closed meanwhile.

    Yields:
        One caption a view, in order.
    """
    if not views:
        return
    for group in _groups(engine, views):
        check_open()
        _open_graphs(engine, group, plan)
        load_ms = engine.take_load_ms()
        started_s = time.perf_counter()
        found = _search(engine, group, plan)
        decode_ms = (time.perf_counter() - started_s) * 1000.0
        for view, captions in zip(group, _worded(engine, group, found, load_ms, decode_ms), strict=True):
            cosine = None
            if plan.rerank and len(captions) > 1:
                ranked = rerank(captions, view, retriever(), weight=plan.rerank)
                captions, cosine = [caption for caption, _ in ranked], ranked[0][1]
            first, *others = captions[: plan.n_best]
            if plan.calibration is not None:
                first = _sure(first, view, plan, plan.calibration, retriever, cosine)
            yield replace(first, alternatives=tuple(others))


@dataclass(frozen=True)
class BagCandidates:
    """What the captions of a bag are chosen from; each a list of captions per image."""

    steered: list[list[Caption]]
    """Best first by the steered score."""

    spoken: list[list[Caption]]
    """Of each image alone, best first."""

    shortened: list[list[Caption]]
    """Beginnings of both, see `shorten`."""

    def beside_spoken(self, *, shorter: bool) -> list[list[Caption]]:
        """Per image what there is to choose from beside the plain beams.

        Args:
            shorter: the shortened ones, too; for a rule that knows what a longer one says that is not there.
        """
        if not shorter:
            return self.steered
        return [[*own, *more] for own, more in zip(self.steered, self.shortened, strict=True)]


def write_contrast(
    engine: Engine,
    image_rows: FloatArray,
    views: Sequence[View],
    plan: DecodePlan,
    contrast: Contrast,
    *,
    spoken: DecodePlan,
) -> BagCandidates:
    """Candidates for the captions of a bag: steered away from what look-alikes would say, plain, and shorter.

    Args:
        engine: its decoder and tokenizer.
        image_rows: (k, d) float32, unit rows of the images: who is most alike.
        views: of the k images.
        plan: how to search; its sampling and `rerank` play no part.
        contrast: how strongly and against how many.
        spoken: how to search each image alone.

    Returns:
        Lists of captions per image; `mean_logprob` is the model's own everywhere.
    """
    engine.check_open()
    decoder = engine.decoder()
    load_ms = engine.take_load_ms()
    rules = plan.rules_from_now()
    started_s = time.perf_counter()
    partners = choose_partners(image_rows, others=contrast.others)
    cache = KVCache.empty(_cross_kv(views))
    if partners.shape[1] == 1:  # nobody to be told from
        found = beam_search(decoder.step, cache, rules=rules, beams=plan.beams, n_best=plan.n_best)
    else:
        found = beam_search(
            contrast_step(decoder.step),
            ContrastCache(cache, partners),
            rules=rules,
            beams=plan.beams,
            n_best=plan.n_best,
            guide=lambda allowed, asked: sharpen(
                allowed, asked.others, weight=contrast.weight, floor=contrast.floor
            ),
        )
    alone = [
        hypotheses
        for first in range(0, len(views), _SPOKEN_TOGETHER)
        for group in _groups(engine, views[first : first + _SPOKEN_TOGETHER])
        for hypotheses in _search(engine, group, spoken)
    ]
    decode_ms = (time.perf_counter() - started_s) * 1000.0
    shorter = [
        [short for one in (*plain, *steered) for short in shortened(one, rules)]
        for plain, steered in zip(alone, found, strict=True)
    ]
    return BagCandidates(
        *(_worded(engine, views, each, load_ms, decode_ms) for each in (found, alone, shorter))
    )


def _groups(engine: Engine, views: Sequence[View]) -> list[Sequence[View]]:
    """All views together where that changes no number, else one by one."""
    if len(views) > 1 and engine.decoder().keeps_rows_apart(_cross_kv(views)):
        return [views]
    return [[view] for view in views]


def _sure(
    caption: Caption,
    view: View,
    plan: DecodePlan,
    calibration: Calibration,
    retriever: Callable[[], Retriever],
    cosine: float | None,
) -> Caption:
    """The caption with its confidence; the time that it took is in `elapsed_ms`."""
    started_s = time.perf_counter()
    if cosine is None:
        cosine = float(retriever().embed_texts([caption.text])[0] @ view.embedding[0])
    sure = with_confidence(caption, view, cosine, calibration=calibration, least=plan.min_confidence)
    elapsed_ms = {**sure.elapsed_ms, "confidence": (time.perf_counter() - started_s) * 1000.0}
    return replace(sure, elapsed_ms=elapsed_ms)


def stream_ids(engine: Engine, view: View, plan: DecodePlan) -> Generator[int, None, None]:
    """The pieces of a view's caption as `decode.stream` finds them."""
    rules = plan.rules_from_now()
    step = engine.decoder().step
    if plan.guidance == 1:
        return stream(step, KVCache.empty(view.cross_kv), rules=rules)
    cache = guided_cache(view.cross_kv, engine.null_kv())
    return stream(contrast_step(step), cache, rules=rules, guide=guide_by(plan.guidance))


def _greedy_graph(engine: Engine, views: Sequence[View], plan: DecodePlan) -> GreedyGraph | None:
    """A graph that makes the caption at once: of one image, where nothing counts but a token's chance."""
    plain = plan.beams == 1 and plan.temperature == 0 and plan.guidance == 1 and plan.deadline_ms is None
    return engine.greedy(plan.rules) if plain and len(views) == 1 and is_plain(plan.rules) else None


def _open_graphs(engine: Engine, views: Sequence[View], plan: DecodePlan) -> None:
    """What the search will ask for, so that the time that opening takes is known before."""
    if _greedy_graph(engine, views, plan) is None:
        engine.decoder()
    if plan.guidance != 1:
        engine.null_kv()


def _search(engine: Engine, views: Sequence[View], plan: DecodePlan) -> list[list[Hypothesis]]:
    """Per view the hypotheses, best first."""
    cross_kv = _cross_kv(views)
    whole = _greedy_graph(engine, views, plan)
    found = None if whole is None else whole.write(cross_kv, plan.rules)
    if found is not None:
        return [[found]]
    step = engine.decoder().step
    if plan.guidance == 1:
        return _searched(step, KVCache.empty(cross_kv), plan)
    cache = guided_cache(cross_kv, engine.null_kv())
    return _searched(contrast_step(step), cache, plan, guide=guide_by(plan.guidance))


def _searched(
    step: Step[CacheT], cache: CacheT, plan: DecodePlan, *, guide: Guide[CacheT] | None = None
) -> list[list[Hypothesis]]:
    """As the plan says: samples, greedy search or beams; the cache holds one row an image."""
    rules = plan.rules_from_now()
    if plan.temperature > 0:
        count = cache.rows
        cache.select(np.repeat(np.arange(count), plan.n_best))
        drawn = sample(
            step,
            cache,
            rules=rules,
            temperature=plan.temperature,
            top_p=plan.top_p,
            generators=[plan.generator(number) for _ in range(count) for number in range(plan.n_best)],
            guide=guide,
        )
        groups = [drawn[first : first + plan.n_best] for first in range(0, len(drawn), plan.n_best)]
        return [sorted(group, key=lambda found: -found.score) for group in groups]
    if plan.beams == 1:
        return [[found] for found in greedy(step, cache, rules=rules, guide=guide)]
    return beam_search(step, cache, rules=rules, beams=plan.beams, n_best=plan.candidates, guide=guide)


def _worded(
    engine: Engine,
    views: Sequence[View],
    found: Sequence[Sequence[Hypothesis]],
    load_ms: float,
    decode_ms: float,
) -> list[list[Caption]]:
    """Hypotheses as captions; milliseconds of the group are shared out evenly."""
    count = len(views)
    groups = []
    for view, hypotheses in zip(views, found, strict=True):
        elapsed_ms = {"load": load_ms / count, "preprocess": 0.0, "vision": 0.0}
        elapsed_ms.update(view.elapsed_ms, decode=decode_ms / count)
        groups.append([_to_caption(engine, hypothesis, elapsed_ms) for hypothesis in hypotheses])
    return groups


def _to_caption(engine: Engine, found: Hypothesis, elapsed_ms: dict[str, float]) -> Caption:
    return Caption(
        text=sentence_case(engine.tokenizer.decode(found.ids)),
        token_ids=found.ids,
        mean_logprob=sum(found.logprobs) / len(found.logprobs),
        truncated=not found.finished,
        elapsed_ms=elapsed_ms,
    )


def sentence_case(text: str) -> str:
    """The first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def _cross_kv(views: Sequence[View]) -> FloatArray:
    return np.concatenate([view.cross_kv for view in views], axis=1)
