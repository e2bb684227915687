"""What a drawn caption earns: self-retrieval, CIDEr-D, grammar, fluency, faithfulness, each for itself.

A term takes drawn captions and gives one float32 for each, higher for better. Nothing here sees a network in
training; scorers are frozen, and images were embedded once, so that a caption costs its text alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tellapart_training.metrics import metric_words
from tellapart_training.metrics.cider import CiderD, DocumentFrequencies
from tellapart_training.metrics.fluency import TextLikelihood

END_WORD = "</s>"


@dataclass(frozen=True)
class DrawnCaptions:
    """Captions that a network drew, and the images they must be told apart from.

    Attributes:
        texts: of each caption.
        ended: whether the end piece was drawn; False for a caption that was cut.
        rows: the training image of each caption.
        bags: the bag of each caption; all 0 where batches are not made of bags.
        pool: the training images of the whole batch over all processes.
        pool_bags: the bag of each image of `pool`.
    """

    texts: Sequence[str]
    ended: Sequence[bool]
    rows: Sequence[int]
    bags: Sequence[int]
    pool: Sequence[int]
    pool_bags: Sequence[int]


class RewardTerm(Protocol):
    """One term of the reward."""

    def __call__(self, drawn: DrawnCaptions) -> Tensor:
        """(b,) float32, higher is better."""


class TextScorer(Protocol):
    """What embeds captions; `scorer.Scorer` is one."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit rows, (b, d) float32."""


class TextJudge(Protocol):
    """What tells sound texts from broken ones."""

    def probability(self, texts: Sequence[str]) -> Tensor:
        """How likely each text is sound, (b,) float32 from 0 to 1."""


class LikelihoodModel(Protocol):
    """What tells usual texts from odd ones."""

    def likelihoods(self, texts: Sequence[str]) -> Sequence[TextLikelihood]:
        """Summed log-probability of each text and its pieces, of which there is at least one."""


def retrieval_logprobs(
    texts: Tensor, images: Tensor, own: Tensor, candidates: Tensor, scale: float
) -> Tensor:
    """Log-probability that a caption picks its own image: method 4.1 with the sign turned.

    Args:
        texts: (b, d) unit rows of captions.
        images: (m, d) unit rows of distinct images.
        own: (b,) int64, the row of each caption's image.
        candidates: (b, m) bool, True where an image may be picked; True at `own`.
        scale: inverse temperature.

    Returns:
        (b,) float32 nats, at most 0.
    """
    # bfloat16 would not tell close similarities apart.
    with torch.autocast(device_type=texts.device.type, enabled=False):
        logits = scale * (texts.float() @ images.float().T)
    allowed = logits.masked_fill(~candidates, float("-inf"))
    return allowed.log_softmax(1).gather(1, own[:, None]).squeeze(1)


class SelfRetrievalReward:
    """Log-probability of the own image among those of the batch or of the bag; caption to image only."""

    def __init__(self, scorer: TextScorer, image_rows: Tensor, *, scale: float, denominator: str) -> None:
        """Keep the scorer and the rows of the training images.

        Args:
            scorer: embeds captions.
            image_rows: (n, d) float32 unit rows of all training images, by the same scorer.
            scale: inverse temperature; the paper has 100.
            denominator: `batch` or `bag`.
        """
        self._scorer, self._images = scorer, image_rows
        self._scale, self._bagged = scale, denominator == "bag"

    def __call__(self, drawn: DrawnCaptions) -> Tensor:
        """See `RewardTerm`."""
        device = self._images.device
        texts = self._scorer.embed_texts(drawn.texts)
        distinct = sorted(set(drawn.pool))  # an image that two bags share is one candidate
        place = {row: column for column, row in enumerate(distinct)}
        own = torch.tensor([place[row] for row in drawn.rows], device=device)
        candidates = torch.ones(len(texts), len(distinct), dtype=torch.bool, device=device)
        if self._bagged:
            members = torch.zeros(max(drawn.pool_bags) + 1, len(distinct), dtype=torch.bool)
            for bag, row in zip(drawn.pool_bags, drawn.pool, strict=True):
                members[bag, place[row]] = True
            candidates = members[torch.tensor(drawn.bags)].to(device)
        images = self._images[torch.tensor(distinct, device=device)]
        return retrieval_logprobs(texts, images, own, candidates, self._scale)


class CiderReward:
    """CIDEr-D of captions with the document frequencies of all training references; the end is a word."""

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """Weigh the references.

        Args:
            references: the human captions of each training image.
        """
        words = [[[*metric_words(text), END_WORD] for text in texts] for texts in references]
        self._scorer = CiderD(words, DocumentFrequencies.of_references(words))

    def __call__(self, drawn: DrawnCaptions) -> Tensor:
        """See `RewardTerm`; from 0 to 10."""
        scores = []
        for text, ended, row in zip(drawn.texts, drawn.ended, drawn.rows, strict=True):
            words = [*metric_words(text), *([END_WORD] if ended else [])]
            scores.append(self._scorer.score(words, row))
        return torch.tensor(scores)


class FaithfulnessReward:
    """Minus the share of a caption's content words that no human caption of its image supports, -1 to 0.

    Our own and simple: words are compared by form, with the commonest endings folded. A synonym counts as
    unsupported, and a few words fold into others ("care" and "car").
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """Note which words each image's captions hold.

        Args:
            references: the human captions of each training image.
        """
        self._supported = [content_words(" ".join(texts)) for texts in references]

    def __call__(self, drawn: DrawnCaptions) -> Tensor:
        """See `RewardTerm`."""
        scores = []
        for text, row in zip(drawn.texts, drawn.rows, strict=True):
            words = content_words(text)
            unsupported = len(words - self._supported[row])
            scores.append(-unsupported / len(words) if words else 0.0)
        return torch.tensor(scores)


class FluencyReward:
    """Mean log-probability per piece under a frozen caption language model, in nats, at most 0.

    Our own: self-retrieval pays for rare words in odd places, and this term takes some of that back. Report
    fluency under another language model, as this one flatters.
    """

    def __init__(self, model: LikelihoodModel) -> None:
        """Keep the model; `metrics.fluency.LanguageModel` is one."""
        self._model = model

    def __call__(self, drawn: DrawnCaptions) -> Tensor:
        """See `RewardTerm`."""
        found = self._model.likelihoods(drawn.texts)
        return torch.tensor([each.logprob / each.pieces for each in found])


class GrammarReward:
    """Probability that a text is sound (method 9.3), 0 to 1."""

    def __init__(self, judge: TextJudge) -> None:
        """Keep the judge; `grammar.GrammarJudge` is one."""
        self._judge = judge

    def __call__(self, drawn: DrawnCaptions) -> Tensor:
        """See `RewardTerm`."""
        return self._judge.probability(drawn.texts)


# Words that say nothing about what a picture shows, and so need no support.
_FUNCTION_WORDS = """
    a an the and or but of in on at to from by with without for into onto over under up down out off near
    next through across along around behind between beside above below against during while as is are was
    were be been being am do does did has have had having it its he she his her him they them their this
    that these those there here some other another each both who which what where when very so too not no
"""


def content_words(text: str) -> frozenset[str]:
    """The words of a text that carry meaning, endings folded: "two dogs running" gives two, dog, run."""
    said = set(metric_words(text)) - set(_FUNCTION_WORDS.split())
    return frozenset(map(_folded, said))


def _folded(word: str) -> str:
    for ending in ("ing", "ies", "ied", "ed", "es", "s"):
        stem = word[: -len(ending)]
        if word.endswith(ending) and len(stem) >= 3 and not word.endswith("ss"):
            if ending in ("ies", "ied"):
                return stem + "y"
            # "running" must meet "runs" in "run", but "rolling" meets "rolls" in "roll".
            doubled = ending in ("ing", "ed") and stem[-1] == stem[-2] and stem[-1] not in "lsz"
            return _without_e(stem[:-1] if doubled else stem)
    return _without_e(word)


def _without_e(word: str) -> str:
    # "riding" leaves "rid", so "ride" must too.
    return word.removesuffix("e") if len(word) > 3 else word


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The total reward of each caption.

    Args:
        terms: (b,) float32 by name.
        weights: of the same names.

    Returns:
        (b,) float32.
    """
    total = torch.zeros_like(next(iter(terms.values())))
    for name, values in terms.items():
        total = total + weights[name] * values.to(total.device)
    return total
