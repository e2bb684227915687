"""Golden values are pycocoevalcap 1.2's (PTBTokenizer, Cider, Bleu, Rouge), printed by
`check_metrics_against_pycocoevalcap.py`, which also compares both on Flickr8k `val` captions, both sides:
CIDEr-D 0.8036617887, BLEU 0.6275129488 0.4434297958 0.3070812933 0.2116010150, ROUGE-L 0.4917340865.
"""  # noqa: D205

from __future__ import annotations

from pathlib import Path

import pytest

from tellapart.errors import DataError
from tellapart_training.metrics import DocumentFrequencies, cider_d, corpus_bleu, metric_words, rouge_l

CANDIDATES = [
    "A black dog runs through the snow .",
    "Two men are playing football on the grass",
    "The girl's tri-colored kite flies (high) over the beach, doesn't it?",
]
REFERENCES = [
    ["A black dog is running in the snow .", "The dog runs through deep snow .", "A dog plays outside"],
    ["Two football players fight for the ball .", "Men play football on a green field .", "A game"],
    ["A girl flies a kite at the beach .", "The child's kite is high in the air", "A kite over the sea"],
]


def _words(texts: list[str]) -> list[list[str]]:
    return [metric_words(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog's owner isn't here, (yet).", "the dog 's owner is n't here -lrb- yet -rrb-"),
        (
            "A U.S. Navy ship at&t #28 10-year-old can't cannot they're black/white",
            "a u.s. navy ship at & t # 28 10-year-old ca n't can not they 're black/white",
        ),
        ('He said "hi" ... and -- left; 3:30 p.m. isn\u2019t', "he said hi and left 3:30 p.m. is n't"),
        ("two dogs' toys, rock 'n' roll $5.00 50% off", "two dogs toys rock 'n' roll $ 5.00 50 % off"),
        ("t-shirt's X-ray e-mail Mr. Smith St. Bernard", "t-shirt 's x-ray e-mail mr. smith st. bernard"),
        ("wanna gonna o'clock d'or", "wan na gon na o'clock d'or"),
        ("[brackets] {x} a & b", "-lsb- brackets -rsb- -lcb- x -rcb- a & b"),
        ("", ""),
    ],
)
def test_words_are_those_of_the_treebank_tokenizer(text: str, expected: str) -> None:
    assert metric_words(text) == expected.split()


def test_scores_are_those_of_pycocoevalcap() -> None:
    candidates, references = _words(CANDIDATES), [_words(texts) for texts in REFERENCES]
    assert cider_d(candidates, references) == pytest.approx([2.42103683, 0.76087531, 0.52943556], abs=1e-7)
    assert corpus_bleu(candidates, references) == pytest.approx(
        [0.6999999999766666, 0.45542003402662484, 0.25855186348485115, 3.012006678579262e-05], rel=1e-9
    )
    assert rouge_l(candidates, references) == pytest.approx([0.68539326, 0.40486726, 0.45185185], abs=1e-7)


def test_fixed_document_frequencies_make_a_score_independent_of_its_company(tmp_path: Path) -> None:
    candidates, references = _words(CANDIDATES), [_words(texts) for texts in REFERENCES]
    frequencies = DocumentFrequencies.of_references(references)
    together = cider_d(candidates, references, frequencies=frequencies)
    alone = cider_d(candidates[:1], references[:1], frequencies=frequencies)
    assert alone == together[:1]
    assert cider_d(candidates[:1], references[:1]) != pytest.approx(alone)
    frequencies.save(tmp_path / "df.json")
    assert DocumentFrequencies.load(tmp_path / "df.json") == frequencies
    (tmp_path / "bad.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="holds no document frequencies"):
        DocumentFrequencies.load(tmp_path / "bad.json")


def test_a_caption_equal_to_its_only_reference_scores_ten_and_an_empty_one_zero() -> None:
    references = [[["a", "b", "c", "d", "e"]], [["v", "w", "x", "y", "z"]]]
    assert cider_d([["a", "b", "c", "d", "e"], []], references) == pytest.approx([10.0, 0.0])
    assert rouge_l([["a", "b", "c", "d", "e"], []], references) == pytest.approx([1.0, 0.0])
