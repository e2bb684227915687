"""An INT8 bundle beside the one it came from: size, time, tokens, retrieval; is that good enough?"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal

import numpy as np

from tellapart.backends import Session, open_session
from tellapart.bundle import Bundle
from tellapart.decode import Rules, greedy, log_softmax
from tellapart.errors import BudgetError
from tellapart.kv_cache import KVCache
from tellapart.photos import Photos
from tellapart.tokenizer import Tokenizer
from tellapart.types import FloatArray, IntArray, RuntimeOptions
from tellapart_coreml.session import open_elsewhere
from tellapart_quantization.self_retrieval import recall_drop
from tellapart_training.metrics import cider_d, metric_words

_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What the INT8 bundle may lose."""

    min_agreement: float = 0.9
    """Least share of next tokens that stay the same along the float bundle's own captions, in [0, 1]."""

    max_recall_drop: float = 0.5
    """Most points of recall lost: of text-to-image R@10 where captions are given, and of the R@1 of its own
    captions on bags, the mean over bag sizes, where a benchmark is given."""

    max_cider_drop: float | None = None
    """Most CIDEr-D lost by the greedy captions (human ones of COCO reach about 1); needs captions."""

    max_mib: float | None = None
    """Largest bundle."""


@dataclasses.dataclass(frozen=True)
class _Answers:
    """What one bundle says about the photos; nothing about what it does not do."""

    captions: list[tuple[int, ...]]
    cross_kv: list[FloatArray]
    images: FloatArray | None
    vision_ms: float
    step_ms: float


class Runner:
    """The graphs of a bundle as a device runs them."""

    def __init__(self, bundle: Bundle, backend: Literal["auto", "openvino"] = "auto") -> None:
        self.bundle = bundle
        self.tokenizer = Tokenizer.from_bundle(bundle)
        runtime = RuntimeOptions(
            backend=backend, threads=1
        )  # times of two bundles compare best without a second thread
        roles = {graph.role for graph in bundle.manifest.graphs}
        self.sessions: dict[str, Session] = {role: self._open(role, runtime) for role in sorted(roles)}

    def _open(self, role: str, runtime: RuntimeOptions) -> Session:
        if self.bundle.manifest.targets == ("coreml",):  # which a Mac alone runs
            return open_elsewhere(self.bundle, role)
        return open_session(self.bundle, role, runtime)

    def close(self) -> None:
        """Close every session."""
        for session in self.sessions.values():
            session.close()

    def rules(self) -> Rules:
        """Greedy search without what the bundle's decoding asks for besides."""
        words = self.tokenizer
        return Rules(
            start_id=words.start_id,
            end_id=words.end_id,
            banned_ids=(words.pad_id, words.unknown_id, words.start_id),
            max_new_tokens=self.bundle.manifest.decoding.max_new_tokens,
        )

    def step(self, ids: IntArray, cache: KVCache) -> FloatArray:
        """Log-probabilities (b, V) after ids (b,); the cache grows."""
        given = self.sessions["decoder"].run(
            {"ids": ids[:, None], "past_kv": cache.past, "cross_kv": cache.cross}
        )
        cache.append(given["present_kv"])
        return log_softmax(given["logits"])

    def answer(self, photos: Photos, names: Sequence[str]) -> _Answers:
        """Captions, keys and values, and unit rows of the photos; times are of single photos and steps."""
        captions: list[tuple[int, ...]] = []
        crosses, rows, vision_ms, step_ms = [], [], [], []
        for pixels in photos.batches(names, self.bundle.manifest.preprocessing, batch_size=_BATCH):
            seen = self.sessions["vision"].run({"pixels": pixels})
            started_s = time.perf_counter()
            self.sessions["vision"].run({"pixels": pixels[:1]})
            vision_ms.append(1e3 * (time.perf_counter() - started_s))
            if "embedding" in seen:
                rows.append(seen["embedding"])
            if "cross_kv" not in seen:
                continue
            crosses.append(seen["cross_kv"])
            captions += [
                found.ids for found in greedy(self.step, KVCache.empty(seen["cross_kv"]), rules=self.rules())
            ]
            cache = KVCache.empty(seen["cross_kv"][:, :1])
            started_s = time.perf_counter()
            self.step(np.array([self.tokenizer.start_id]), cache)
            step_ms.append(1e3 * (time.perf_counter() - started_s))
        return _Answers(
            captions,
            crosses,
            np.concatenate(rows) if rows else None,
            statistics.median(vision_ms),
            statistics.median(step_ms) if step_ms else 0.0,
        )

    def next_tokens(self, cross_kv: FloatArray, captions: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """The likeliest next token after each beginning of given captions, the whole caption included."""
        words, longest = self.tokenizer, max(len(caption) for caption in captions)
        cache, rules = KVCache.empty(cross_kv), self.rules()
        ids = np.full(len(captions), words.start_id)
        found: list[list[int]] = [[] for _ in captions]
        for place in range(longest + 1):
            logprobs = self.step(ids, cache)
            logprobs[:, list(rules.banned_ids)] = -np.inf
            for row, token in enumerate(logprobs.argmax(axis=1).tolist()):
                found[row].append(token)
            ids = np.array([caption[place] if place < len(caption) else words.end_id for caption in captions])
        return [row[: len(caption) + 1] for row, caption in zip(found, captions, strict=True)]

    def say(self, ids: Sequence[int]) -> str:
        """A caption as text."""
        return self.tokenizer.decode(ids)

    def texts(self, texts: Sequence[str]) -> FloatArray:
        """Unit rows of texts, (n, E)."""
        words, longest = self.tokenizer, self.bundle.manifest.vocabulary.max_text_tokens
        rows = []
        for first in range(0, len(texts), 64):
            cut = [words.encode(text, longest) for text in texts[first : first + 64]]
            ids = np.full((len(cut), max(map(len, cut))), words.pad_id)
            for row, tokens in enumerate(cut):
                ids[row, : len(tokens)] = tokens
            rows.append(self.sessions["text"].run({"ids": ids})["embedding"])
        return np.concatenate(rows)


def compare_bundles(
    reference: Bundle,
    candidate: Bundle,
    photos: Photos,
    names: Sequence[str],
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Measure what a smaller bundle keeps.

    Args:
        reference: the bundle it came from.
        candidate: the smaller one.
        photos: where the photos are.
        names: which of them, none of them calibrated on.
        captions: human captions by name; with them, retrieval among the photos is measured.

    Returns:
        JSON values: `size_mib`, `vision_ms`, `step_ms` as {"reference", "int8"}, and `runtime` likewise;
        `photos`; of captioners `token_agreement`
        (same next token along the reference's captions); `caption_agreement` (whole greedy captions equal);
        `first_divergence` of the latter, see `find_divergence`;
        with captions `cider_d` of the greedy ones; of retrievers `mean_image_cosine`, and with captions
        `retrieval`: {"text_to_image", "image_to_text"} -> {"r1", "r5", "r10"} -> {"reference", "int8"}, in
        percent.
    """
    # The same runtime on both sides, where the reference has graphs for it.
    alike = candidate.manifest.targets == ("openvino",) and "openvino" in reference.manifest.targets
    runners = (Runner(reference, "openvino" if alike else "auto"), Runner(candidate, "auto"))
    try:
        first, second = (runner.answer(photos, names) for runner in runners)
        same = total = 0
        for index, cross_kv in enumerate(second.cross_kv):
            said = first.captions[index * _BATCH : (index + 1) * _BATCH]
            end = runners[0].tokenizer.end_id
            ours = runners[0].next_tokens(first.cross_kv[index], said)
            theirs = runners[1].next_tokens(cross_kv, said)
            for caption, one, other in zip(said, ours, theirs, strict=True):
                # A caption cut off by its longest length says nothing about the end mark.
                places = len(caption) + int(one[len(caption)] == end)
                same += sum(a == b for a, b in zip(one[:places], other[:places], strict=True))
                total += places
        report: dict[str, Any] = {
            "photos": len(names),
            "size_mib": _pair(_mib(reference), _mib(candidate), digits=2),
            "runtime": {
                key: runner.sessions["vision"].backend
                for key, runner in zip(("reference", "int8"), runners, strict=True)
            },
            "vision_ms": _pair(first.vision_ms, second.vision_ms, digits=2),
        }
        if first.captions:
            report["step_ms"] = _pair(first.step_ms, second.step_ms, digits=3)
            report["token_agreement"] = round(same / max(total, 1), 4)
            equal = sum(a == b for a, b in zip(first.captions, second.captions, strict=True))
            report["caption_agreement"] = round(equal / len(names), 4)
            end = runners[0].tokenizer.end_id
            report["first_divergence"] = find_divergence(names, first.captions, second.captions, end_id=end)
            if captions is not None:
                references = [list(map(metric_words, captions[name])) for name in names]
                report["cider_d"] = _pair(
                    *(
                        statistics.mean(
                            cider_d([metric_words(runner.say(ids)) for ids in said.captions], references)
                        )
                        for runner, said in zip(runners, (first, second), strict=True)
                    ),
                    digits=4,
                )
        if first.images is None or second.images is None:
            return report
        report["mean_image_cosine"] = round(float((first.images * second.images).sum(axis=1).mean()), 5)
        if captions is not None:
            owners = [place for place, name in enumerate(names) for _ in captions[name]]
            texts = [text for name in names for text in captions[name]]
            recalls = [
                _recalls(images, runner.texts(texts), np.array(owners))
                for images, runner in zip((first.images, second.images), runners, strict=True)
            ]
            report["retrieval"] = {
                way: {
                    key: _pair(recalls[0][way][key], recalls[1][way][key], digits=2)
                    for key in ("r1", "r5", "r10")
                }
                for way in ("text_to_image", "image_to_text")
            }
        return report
    finally:
        for runner in runners:
            runner.close()


def find_divergence(
    names: Sequence[str],
    reference: Sequence[Sequence[int]],
    int8: Sequence[Sequence[int]],
    *,
    end_id: int,
) -> dict[str, Any] | None:
    """The first photo whose captions differ, and where.

    Args:
        names: of the photos.
        reference: ids of the reference's caption of each, without the end mark.
        int8: the smaller bundle's.
        end_id: what a caption has after its last id.

    Returns:
        {"photo", "token", "reference", "int8", "name"}: photo and token counted from 1, the two ids there;
        None where all captions are equal.
    """
    for photo, (name, one, other) in enumerate(zip(names, reference, int8, strict=True), start=1):
        if tuple(one) != tuple(other):
            pairs = zip_longest(one, other, fillvalue=end_id)
            token, (wanted, given) = next(
                (at, pair) for at, pair in enumerate(pairs, 1) if pair[0] != pair[1]
            )
            return {"photo": photo, "token": token, "reference": wanted, "int8": given, "name": name}
    return None


def check_budget(report: Mapping[str, Any], budget: Budget) -> None:
    """Is it good enough?

    Raises:
        BudgetError: it is not; the message names every promise that was not kept.
    """
    broken = []
    agreement = report.get("token_agreement", 1.0)  # a retriever alone has no tokens
    if not agreement >= budget.min_agreement:
        broken.append(f"token agreement {agreement:.4f} is below {budget.min_agreement} (--min-agreement)")
    if "retrieval" in report:
        recall = report["retrieval"]["text_to_image"]["r10"]
        drop = recall["reference"] - recall["int8"]
        if not drop <= budget.max_recall_drop:
            broken.append(
                f"R@10 fell by {drop:.2f} points, more than {budget.max_recall_drop} (--max-recall-drop)"
            )
    if "self_retrieval" in report:
        drop = recall_drop(report["self_retrieval"])
        if not drop <= budget.max_recall_drop:
            broken.append(
                f"R@1 on bags fell by {drop:.2f} points, more than {budget.max_recall_drop} "
                "(--max-recall-drop)"
            )
    if budget.max_cider_drop is not None and "cider_d" in report:
        drop = report["cider_d"]["reference"] - report["cider_d"]["int8"]
        if not drop <= budget.max_cider_drop:
            broken.append(f"CIDEr-D fell by {drop:.4f}, more than {budget.max_cider_drop} (--max-cider-drop)")
    size = report["size_mib"]["int8"]
    if budget.max_mib is not None and not size <= budget.max_mib:
        broken.append(f"the bundle is {size:.2f} MiB, above {budget.max_mib} (--max-mib)")
    if broken:
        raise BudgetError(
            f"INT8 bundle refused: {'; '.join(broken)}. Keep blocks in float (--keep-float auto), "
            "calibrate on more photos, tune the heads on the quantized trunk, or allow more"
        )


def _recalls(images: FloatArray, texts: FloatArray, owners: IntArray) -> dict[str, dict[str, float]]:
    """R@1, R@5 and R@10 in percent, both ways; `owners` (n,) is each text's row in `images`."""
    similarity = texts @ images.T  # (texts, images)
    own = similarity[np.arange(len(owners)), owners]
    to_image = (similarity > own[:, None]).sum(axis=1)
    best_own = np.full(len(images), -np.inf, np.float32)
    np.maximum.at(best_own, owners, own)
    to_text = (similarity > best_own[None, :]).sum(axis=0)
    return {
        way: {f"r{k}": 100 * float((ranks < k).mean()) for k in (1, 5, 10)}
        for way, ranks in (("text_to_image", to_image), ("image_to_text", to_text))
    }


def _mib(bundle: Bundle) -> float:
    return sum(entry.bytes for entry in bundle.manifest.files.values()) / 2**20


def _pair(reference: float, int8: float, *, digits: int) -> dict[str, float]:
    return {"reference": round(reference, digits), "int8": round(int8, digits)}
