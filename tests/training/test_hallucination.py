"""Objects that captions name and invent, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellapart.errors import DataError
from tellapart_training.metrics.hallucination import ObjectList, object_hallucination
from tellapart_training.metrics.words import metric_words

OBJECTS = ObjectList.load()


def _unsupported(caption: str, *references: str) -> tuple[str, ...]:
    return OBJECTS.unsupported(metric_words(caption), [metric_words(text) for text in references])


@pytest.mark.parametrize(
    ("caption", "concepts"),
    [
        ("A brown puppy and two dogs catch a frisbee.", ("dog", "frisbee")),
        ("a hot dog next to a dog", ("hot_dog", "dog")),
        ("a hot dog", ("hot_dog",)),
        ("a teddy bear on a couch", ("teddy_bear", "couch")),
        ("a snow-covered hill", ("snow", "hill")),
        ("a boy in a t-shirt", ("boy", "shirt")),
        ("a man smiles at the camera", ("man",)),
        ("a man with a camera", ("man", "camera")),
        ("it is very red and blue", ()),
        ("", ()),
    ],
)
def test_objects_are_found_by_their_words(caption: str, concepts: tuple[str, ...]) -> None:
    assert OBJECTS.named(metric_words(caption)) == concepts


@pytest.mark.parametrize(
    ("caption", "references", "invented"),
    [
        ("a puppy", ["the dog runs"], ()),  # a synonym
        ("a person", ["a girl in red"], ()),  # two levels narrower
        ("a man", ["some people"], ()),  # broader, and nothing says which people
        ("a man", ["a surfer"], ()),  # what somebody does is not who it is
        ("a man", ["a woman"], ("man",)),
        ("a man", ["a woman", "a person"], ("man",)),  # the person is the woman
        ("a man", ["a woman", "a guy on a bench"], ()),  # any one reference is enough
        ("a boy", ["a child"], ()),
        ("a boy", ["a girl", "a child"], ("boy",)),
        ("a cat on a mat", ["a dog"], ("cat", "rug")),
        ("a basketball", ["a boy with a ball"], ()),
        ("a football", ["a soccer player"], ("football",)),
        ("a lake", ["a boat on the water"], ()),
        ("a lake", ["a boat on the water", "a river"], ("lake",)),
    ],
)
def test_kinds_bear_each_other_out_along_a_line_only(
    caption: str, references: list[str], invented: tuple[str, ...]
) -> None:
    assert _unsupported(caption, *references) == invented


def test_rates_are_shares_of_named_objects_and_of_captions() -> None:
    captions = ["a dog and a dog and a cat", "a dog", "nothing to see"]
    references = [["a dog"], ["a dog"], ["a horse"]]
    counts = object_hallucination(
        [metric_words(text) for text in captions], [[metric_words(t) for t in each] for each in references]
    )
    # Named: dog, cat | dog | none; the repeated dog counts once, so it cannot thin out the cat.
    assert (counts.captions, counts.objects, counts.invented, counts.captions_with_invented) == (3, 3, 1, 1)
    assert counts.figures() == {
        "chair_i": pytest.approx(1 / 3),
        "chair_s": pytest.approx(1 / 3),
        "objects_named": 1.0,
    }


def test_no_objects_at_all_is_no_hallucination() -> None:
    assert object_hallucination([["red"]], [[["a", "dog"]]]).figures()["chair_i"] == 0.0


def test_the_list_covers_what_captions_are_about() -> None:
    assert len(OBJECTS.broader) > 150
    for plural in ("dogs", "children", "women", "buses", "benches", "knives"):
        assert (plural,) in OBJECTS.concept_of
    assert OBJECTS.broader["girl"] == {"child", "person"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dog dogs", "expected 'concept"),
        ("dog:", "expected 'concept"),
        ("dog: dog\ndog: puppy", "each concept once"),
        ("dog: dog\ncat: dog", "already stands for dog"),
        ("dog < pet: dog", "absent"),
        ("dog < cat: dog\ncat < dog: cat", "itself"),
    ],
)
def test_a_wrong_list_names_the_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "objects.txt"
    path.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        ObjectList.load(path)
