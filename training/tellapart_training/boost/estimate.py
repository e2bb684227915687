"""A dry run: how many requests, tokens and how much money a run would take, without asking anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tellapart_training.boost.chat import IMAGE_TOKENS, estimate_tokens
from tellapart_training.boost.chat_run import make_recipe
from tellapart_training.boost.options import BoostOptions
from tellapart_training.boost.prompt import load_prompt
from tellapart_training.boost.spending import Prices
from tellapart_training.boost.texts import clean_captions
from tellapart_training.boost.vision import DESCRIPTION_TOKENS
from tellapart_training.data import CaptionRecord

_TOKENS_OF_A_WORD = 1.5
_STATEMENT = "There is something of some colour somewhere in the photo."
_STATEMENTS = 8
_COMPLAINT_TOKENS = 90


def estimate(records: Sequence[CaptionRecord], options: BoostOptions) -> dict[str, Any]:
    """What a run would take, the journal's answers not counted.

    Args:
        records: images of the run.
        options: of the run.

    Returns:
        `{"dry_run": {...}}`: requests, tokens, money and minutes when every first answer passes; and the
        same "at most", when every image needs every try. Tries again after faults are in neither.

    Raises:
        UsageError: there is no such prompt.
    """
    chat, recipe = options.chat, make_recipe(options)
    looks = chat.looks
    described = [_STATEMENT] * _STATEMENTS if chat.vision else []
    prompt = recipe.fuse if chat.vision else recipe.blend
    look_tokens = 0
    if looks:
        description = load_prompt(chat.describe_prompt)
        look_tokens = (len(description.system) + len(description.user)) // 4 + IMAGE_TOKENS + 16
    answer_tokens = min(chat.max_tokens, round(options.max_words * _TOKENS_OF_A_WORD))
    few, many, images = [0, 0, 0], [0, 0, 0], 0
    for record in records:
        texts = clean_captions(record.captions).texts
        if not texts or (len(texts) == 1 and not chat.vision):
            continue
        images += 1
        asked = estimate_tokens(
            prompt.messages(captions=texts, vision=described, max_words=options.max_words)
        )
        if looks:
            _add(few, 1, look_tokens, len(" ".join(described)) // 4)
            _add(many, 1, look_tokens, DESCRIPTION_TOKENS)
        _add(few, options.per_image, asked, answer_tokens)
        for turn in range(chat.tries):
            _add(many, options.per_image, asked + (_COMPLAINT_TOKENS if turn else 0), chat.max_tokens)
    prices = Prices(chat.price_input, chat.price_output)
    report: dict[str, Any] = {"images": len(records), "images_to_ask_about": images}
    for title, (requests, read, written) in (("", few), ("at_most_", many)):
        report[f"{title}requests"] = requests
        report[f"{title}input_tokens"] = read
        report[f"{title}output_tokens"] = written
        if chat.price_input or chat.price_output:
            report[f"{title}money"] = round(prices.cost(read, written), 4)
        paces = ((requests, chat.requests_per_minute), (read + written, chat.tokens_per_minute))
        if any(pace for _, pace in paces):
            report[f"{title}minutes"] = round(max(count / pace for count, pace in paces if pace), 1)
    return {"dry_run": report}


def _add(totals: list[int], requests: int, read: int, written: int) -> None:
    totals[0] += requests
    totals[1] += requests * read
    totals[2] += requests * written
