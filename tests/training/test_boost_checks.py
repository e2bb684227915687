"""The anchoring checks, one sound caption and one broken one for each rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tellapart_training.boost.checks import Candidate, Checker, Limits, estimate_clip_tokens
from tellapart_training.boost.lexicon import load_lexicon

if TYPE_CHECKING:
    from tellapart_training.boost.parsing import SpacyParser

pytestmark = pytest.mark.train

HUMANS = (
    "A little girl in a pink dress is climbing up a set of stairs.",
    "A girl going into a wooden building behind a brown dog.",
    "A little girl climbing into a wooden playhouse with two dogs.",
)
LIMITS = Limits(words=24, pieces=24, count_pieces=lambda text: len(text.split()) + 2)


def broken(parser: SpacyParser, text: str, *, humans: tuple[str, ...] = HUMANS, **more: object) -> str:
    """The rule that a caption breaks."""
    given = {
        "text": text, "sentence": parser.parse([text])[0], "humans": parser.parse(humans), **more
    }  # fmt: skip
    return Checker(load_lexicon(), LIMITS).check(Candidate(**given))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "A little girl in a pink dress is climbing up a set of stairs into a wooden playhouse.",
        "A child in a pink dress climbs into a wooden building.",  # "child" is borne out by "girl"
        "Two dogs and a little girl in a wooden playhouse.",
    ],
)
def test_anchored_captions_pass(caption_parser: SpacyParser, text: str) -> None:
    assert broken(caption_parser, text) == ""


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Girl.", "empty"),
        ("The image shows a little girl in a pink dress climbing stairs.", "meta"),
        ("Sure, a little girl in a pink dress is climbing stairs.", "meta"),
        ("I'm sorry, a girl climbing is not something to describe.", "meta"),
        ("Ein kleines Mädchen in einem rosa Kleid klettert die Treppe hoch.", "language"),
        ("Une petite fille dans une robe rose monte les escaliers.", "language"),
        ("A little girl climbing stairs", "sentence"),
        ("A little girl is climbing. The girl is going into a building.", "sentence"),
        ("A little girl climbing stairs;\ngirl.", "sentence"),
        ("A little girl " + "and a girl " * 12 + "climbing.", "length"),
        ("A little girl in a pink dress is climbing up the stairs of a castle.", "words"),
        ("A little girl in a wooden dress is climbing up stairs.", "attributes"),
        ("Three dogs and a little girl climbing stairs.", "counts"),
        ("A brown dog in a pink dress is climbing up stairs.", "relations"),
        ("A little girl climbing behind a wooden building.", "relations"),
    ],
)
def test_what_is_not_anchored_is_named(caption_parser: SpacyParser, text: str, rule: str) -> None:
    assert broken(caption_parser, text) == rule


def test_an_echo_of_the_prompt_is_named(caption_parser: SpacyParser) -> None:
    prompt = "Write one sentence that merges the girl in a pink dress and the stairs"
    text = "One sentence that merges the girl in a pink dress."
    assert broken(caption_parser, text, prompt=prompt) == "echo"


def test_a_colour_that_most_contradict_is_a_conflict(caption_parser: SpacyParser) -> None:
    humans = ("A man in a red hat.", "A tall man in a blue hat.", "A man wearing a blue hat.")
    assert broken(caption_parser, "A tall man in a red hat.", humans=humans) == "conflict"
    assert broken(caption_parser, "A tall man in a blue hat.", humans=humans) == ""


def test_a_count_that_most_contradict_is_a_conflict(caption_parser: SpacyParser) -> None:
    humans = ("Three boys run.", "Two boys run on grass.", "Two boys running on grass.")
    assert broken(caption_parser, "Three boys run on grass.", humans=humans) == "conflict"


def test_vision_may_add_but_not_overrule(caption_parser: SpacyParser) -> None:
    humans = ("A man in a blue hat stands.", "A man wearing a blue hat.")
    vision = caption_parser.parse(["A man in a red hat near a truck.", "Three men."])
    truck = "A man in a blue hat stands near a truck."
    assert broken(caption_parser, truck, humans=humans) == "words"
    assert broken(caption_parser, truck, humans=humans, vision=vision) == ""
    red = "A man in a red hat stands near a truck."
    assert broken(caption_parser, red, humans=humans, vision=vision) == "conflict"


def test_exact_support_asks_for_every_word(caption_parser: SpacyParser) -> None:
    humans = ("An old man on the bench.",)
    assert broken(caption_parser, "A old man on the bench.", humans=humans, exact=True) == ""
    assert broken(caption_parser, "A old man at the bench.", humans=humans, exact=True) == "words"


def test_rules_are_switched_off_by_name(caption_parser: SpacyParser) -> None:
    text = "A little girl in a castle."
    candidate = Candidate(
        text=text, sentence=caption_parser.parse([text])[0], humans=caption_parser.parse(HUMANS)
    )
    assert Checker(load_lexicon(), LIMITS).check(candidate)[0] == "words"
    assert Checker(load_lexicon(), LIMITS, frozenset(["words"])).check(candidate) == ("", "")


def test_clip_tokens_are_estimated_from_above_and_bound_the_caption(caption_parser: SpacyParser) -> None:
    # 11 tokens by CLIP's own tokenizer (openai/clip-vit-base-patch32), its two marks counted.
    assert estimate_clip_tokens("a photo of a cat on a sofa.") >= 11
    text = "A girl " + " ".join(["unpronounceable"] * 20) + "."
    assert broken(caption_parser, text) == "clip_length"
