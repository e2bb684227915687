"""Captions from the network itself: greedy and beam search, for training-time samples and parity checks.

The device has its own loop (`tellapart.decode`); the exporter proves that both give the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tellapart_model.captioner import COMPACT_MARKS, CaptionNetwork, Marks
from tellapart_model.compact import CompactPair
from tellapart_model.config import END_ID, START_ID


def forbid_specials(logits: Tensor, marks: Marks = COMPACT_MARKS) -> Tensor:
    """Logits (..., v) with what is never part of a caption ruled out: padding, unknown and start pieces."""
    if not marks.barred:
        return logits
    barred = torch.tensor(marks.barred, device=logits.device)
    return logits.index_fill(-1, barred, float("-inf"))


def greedy(
    model: CaptionNetwork, condition: Tensor, *, max_new_tokens: int, marks: Marks = COMPACT_MARKS
) -> Tensor:
    """Most likely token at each step.

    Args:
        model: The network, in eval mode.
        condition: (_, b, ...) float, see `CaptionNetwork`; cross_kv (2l, b, h, n, d) of the compact pair.
        max_new_tokens: longest caption, the end piece included.
        marks: of the network's vocabulary.

    Returns:
        (b, t) int64 without the start piece, t <= max_new_tokens; after the end piece rows hold `marks.pad`.
    """
    return _unroll(model, condition, max_new_tokens, marks, lambda logits: logits.argmax(-1))


def sample(
    model: CaptionNetwork,
    condition: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    marks: Marks = COMPACT_MARKS,
) -> Tensor:
    """Captions drawn from the model's own distribution, with torch's global generator.

    Args:
        model: The network, in eval mode.
        condition: as for `greedy`; repeat a row to draw several captions of one image.
        max_new_tokens: longest caption, the end piece included.
        temperature: divides the logits, above 0.
        marks: of the network's vocabulary.

    Returns:
        As `greedy`; a row without an end piece was cut.
    """
    return _unroll(model, condition, max_new_tokens, marks, lambda logits: draw(logits / temperature))


def draw(logits: Tensor) -> Tensor:
    """One token of each row by inverting its cumulative distribution.

    A single uniform number a row: `torch.multinomial` draws one for every entry of the vocabulary, which
    took a third of the time of a caption on a CPU.

    Args:
        logits: (b, v) float; -inf is never drawn.

    Returns:
        (b,) int64.
    """
    cumulative = logits.float().softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding may lift the product to the total itself, where no entry would be above it.
    threshold = torch.minimum(torch.rand_like(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]


_COMPACT_BELOW = 0.75
"""Rows are packed anew when fewer than this share of them still grow; the copy costs a few steps."""


@torch.no_grad()
def _unroll(
    model: CaptionNetwork,
    condition: Tensor,
    max_new_tokens: int,
    marks: Marks,
    pick: Callable[[Tensor], Tensor],
) -> Tensor:
    batch, device = condition.shape[1], condition.device
    out = torch.full((batch, max_new_tokens), marks.pad, device=device)
    rows = torch.arange(batch, device=device)  # of `out`, for each row still in hand
    ends = torch.tensor(sorted(marks.ends), device=device)
    walk = model.walk(condition, max_new_tokens)
    ids = torch.full((batch, 1), marks.start, device=device)
    growing = torch.ones(batch, dtype=torch.bool, device=device)
    for past in range(max_new_tokens):
        token = pick(forbid_specials(walk.step(ids).float(), marks)).masked_fill(~growing, marks.pad)
        out[rows, past] = token
        growing = growing & ~torch.isin(token, ends)
        left = int(growing.sum())
        if left == 0:
            return out[:, : past + 1]
        ids = token[:, None]
        if left < _COMPACT_BELOW * len(rows):
            keep = growing.nonzero()[:, 0]
            rows, ids, growing = rows[keep], ids[keep], growing[keep]
            walk.keep(keep)
    return out


@torch.no_grad()
def beam_search(
    model: CompactPair, cross_kv: Tensor, *, beams: int, max_new_tokens: int, length_penalty: float = 1.0
) -> list[list[int]]:
    """Beam search, all images at once; a hypothesis scores its summed log-probability / length ** penalty.

    Args:
        model: The network, in eval mode.
        cross_kv: (2l, b, h, n, d) float.
        beams: hypotheses kept per image, at least 1.
        max_new_tokens: longest caption, the end piece included.
        length_penalty: exponent of the length, the end piece counted.

    Returns:
        One list of ids per image, start and end pieces left out.
    """
    images, device = cross_kv.shape[1], cross_kv.device
    cross = cross_kv.repeat_interleave(beams, 1)
    past = model.decoder.empty_past(images * beams)
    ids = torch.full((images * beams, 1), START_ID)
    scores = torch.full((images, beams), float("-inf"))
    scores[:, 0] = 0.0
    tokens = torch.zeros(images, beams, 0, dtype=torch.long)
    best: list[tuple[float, list[int]]] = [(float("-inf"), []) for _ in range(images)]
    for length in range(1, max_new_tokens + 1):
        logits, past = model.decoder.step(ids.to(device), past, cross)
        logp = forbid_specials(logits).log_softmax(-1).reshape(images, beams, -1)
        vocabulary = logp.shape[-1]
        summed = (scores.to(device)[..., None] + logp).flatten(1)
        # The bookkeeping reads number by number, which is for the CPU.
        top, flat = (
            each.cpu() for each in summed.topk(min(2 * beams, beams * vocabulary), 1)
        )  # (b, 2 beams)
        origin, token = flat // vocabulary, flat % vocabulary
        next_scores = torch.full((images, beams), float("-inf"))
        next_origin = torch.zeros(images, beams, dtype=torch.long)
        next_token = torch.full((images, beams), END_ID)
        for image in range(images):
            slot = 0
            for rank in range(top.shape[1]):
                if not top[image, rank] > float("-inf"):
                    continue
                parent = int(origin[image, rank])
                if int(token[image, rank]) == END_ID:
                    score = float(top[image, rank]) / length**length_penalty
                    if score > best[image][0]:
                        best[image] = (score, tokens[image, parent].tolist())
                elif slot < beams:
                    next_scores[image, slot] = top[image, rank]
                    next_origin[image, slot] = parent
                    next_token[image, slot] = token[image, rank]
                    slot += 1
        tokens = torch.cat(
            [tokens.gather(1, next_origin[..., None].expand(-1, -1, length - 1)), next_token[..., None]], 2
        )
        scores = next_scores
        rows = (torch.arange(images)[:, None] * beams + next_origin).flatten()
        past = past[:, rows.to(device)]
        ids = next_token.reshape(-1, 1)
        if length_penalty <= 1 and all(
            best[i][0] >= float(scores[i].max()) / max_new_tokens**length_penalty for i in range(images)
        ):
            break
    for image in range(images):
        if best[image][0] == float("-inf"):  # no hypothesis came to its end
            best[image] = (0.0, tokens[image, int(scores[image].argmax())].tolist())
    return [sequence for _, sequence in best]
