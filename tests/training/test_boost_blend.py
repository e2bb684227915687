"""The extractive blend: what is grafted, what is not, and that no word is made up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tellapart_training.boost.blend import Blend, BlendOptions, blend_captions
from tellapart_training.boost.checks import exact_words
from tellapart_training.boost.lexicon import load_lexicon
from tellapart_training.boost.writing import spell

if TYPE_CHECKING:
    from tellapart_training.boost.parsing import SpacyParser

pytestmark = pytest.mark.train


def blended(parser: SpacyParser, *captions: str, options: BlendOptions | None = None) -> Blend:
    """The best blend of some captions."""
    return blend_captions(parser.parse(captions), lexicon=load_lexicon(), options=options)[0]


def test_an_adjective_of_the_same_thing_is_grafted_in_its_usual_place(caption_parser: SpacyParser) -> None:
    found = blended(
        caption_parser,
        "A brown dog is running through the water with a ball in its mouth.",
        "A large dog runs through water.",
    )
    assert found.text == "A large brown dog is running through the water with a ball in its mouth."
    assert found.grafts == ("large",)


def test_the_article_follows_what_is_grafted(caption_parser: SpacyParser) -> None:
    found = blended(
        caption_parser, "A man sits on a wooden bench next to his dog.", "An old man sits on a bench."
    )
    assert found.text == "An old man sits on a wooden bench next to his dog."


def test_clothes_a_doing_and_a_place_are_grafted(caption_parser: SpacyParser) -> None:
    found = blended(
        caption_parser,
        "A little girl is smiling at the camera.",
        "A girl in a pink dress.",
        "A girl holding a red balloon.",
        "A little girl is standing in a garden.",
    )
    words = set(exact_words(found.text))
    assert {"pink", "dress", "holding", "balloon", "garden"} & words >= {"pink", "dress"}
    assert len(found.grafts) >= 2


def test_what_only_somebody_else_has_is_not_grafted(caption_parser: SpacyParser) -> None:
    found = blended(
        caption_parser,
        "A man is throwing a ball to a large brown dog on the beach.",
        "A woman in a red hat watches.",
        "A man and a boy wearing blue shorts.",
    )
    assert not {"red", "hat", "blue", "shorts"} & set(exact_words(found.text))


def test_captions_in_conflict_leave_the_colour_vague_or_take_what_most_say(
    caption_parser: SpacyParser,
) -> None:
    tied = blended(
        caption_parser,
        "A man stands on a street near a car.",
        "A man in a red shirt.",
        "A man in a blue shirt.",
    )
    assert not {"red", "blue"} & set(exact_words(tied.text))
    outvoted = blended(
        caption_parser,
        "A man in a red jacket is climbing up a steep rock face with a rope.",
        "A man in a green jacket climbs.",
        "A man wearing a green jacket is climbing a rock.",
    )
    assert "red" not in exact_words(outvoted.text)
    assert outvoted.base == 0


def test_a_caption_that_miscounts_is_not_the_base(caption_parser: SpacyParser) -> None:
    found = blended(
        caption_parser,
        "Three men are walking down a busy street.",
        "Two men walk down a street.",
        "Two men on a street.",
    )
    assert found.base != 0


def test_agreement_asks_for_more_voices(caption_parser: SpacyParser) -> None:
    captions = (
        "A dog is running through the water with a ball in its mouth.", "A large dog runs.", "A wet dog.",
        "A large dog in the water.",
    )  # fmt: skip
    assert set(blended(caption_parser, *captions).grafts) == {"large", "wet"}
    assert blended(caption_parser, *captions, options=BlendOptions(agreement=2)).grafts == ("large",)


def test_a_longest_length_is_kept(caption_parser: SpacyParser) -> None:
    captions = (
        "A dog is running through the deep water.",
        "A large dog runs.",
        "A brown dog with a red collar.",
    )
    short = blended(caption_parser, *captions, options=BlendOptions(max_words=9))
    assert len(exact_words(short.text)) <= 9
    assert len(exact_words(blended(caption_parser, *captions).text)) > 9


def test_one_caption_comes_back_as_it_is(caption_parser: SpacyParser) -> None:
    assert blended(caption_parser, "a dog runs").text == "A dog runs."


_PHRASES = st.lists(
    st.sampled_from(
        [
            "a", "two", "the", "young", "red", "old", "black and white", "dog", "dogs", "man", "girl", "in",
            "with",
            "wearing", "is", "running", "holding", "a hat", "a blue shirt", "on the grass", "near a tree",
            "while",
            "and", "his", "her", "other", "sits", "jumps over", "a fence", ",", "of people", "group",
        ]
    ),
    min_size=1,
    max_size=9,
).map(" ".join)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(captions=st.lists(_PHRASES, min_size=1, max_size=5))
def test_no_word_is_ever_made_up(caption_parser: SpacyParser, captions: list[str]) -> None:
    stated = {word for caption in captions for word in exact_words(caption)}
    for blend in blend_captions(caption_parser.parse(captions), lexicon=load_lexicon(), limit=5):
        assert set(exact_words(blend.text)) <= stated
        assert blend.text.endswith(".")
        assert blend.text.count(".") == 1


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["a", "old", "man"], "An old man."),
        (["an", "young", "man", ",", ",", "here", "."], "A young man, here."),
        (["a", "uniformed", "officer", "in", "a", "hour"], "A uniformed officer in an hour."),
        (["a", "one-armed", "man", "in", "a", "umbrella"], "A one-armed man in an umbrella."),
    ],
)
def test_spelling(pieces: list[str], text: str) -> None:
    assert spell(pieces) == text
