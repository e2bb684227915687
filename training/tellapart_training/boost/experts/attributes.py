"""The expert of colours: of a thing that people name and nobody gives a colour, by similarity.

The retriever compares "a red shirt", "a blue shirt" and so on with the region of the photo that is most like
"a shirt". The score is the lead of the nearest colour over the next, as a difference of cosines.
"""

from __future__ import annotations

from collections import Counter

from tellapart.retriever import Retriever
from tellapart.types import PixelArray
from tellapart_training.boost.experts.crops import Phrases, regions_of
from tellapart_training.boost.experts.expert import ExpertSetting, Sight
from tellapart_training.boost.facts import colours, nouns
from tellapart_training.boost.lexicon import Lexicon, load_lexicon
from tellapart_training.boost.source import Subject

LEAST = 0.25
COLOURS = (
    "black",
    "white",
    "brown",
    "red",
    "blue",
    "green",
    "yellow",
    "orange",
    "pink",
    "purple",
    "gray",
    "blond",
)


class AttributeExpert:
    """Names colours; safe from many threads.

    Args:
        retriever: whose similarity is trusted.
        lexicon: word classes.
        least: least lead.
    """

    name = "attributes"

    def __init__(self, retriever: Retriever, lexicon: Lexicon, *, least: float = LEAST) -> None:
        self._retriever, self._lexicon, self._least = retriever, lexicon, least
        self._phrases = Phrases(retriever)

    def see(self, photo: PixelArray, subject: Subject) -> list[Sight]:
        """Colours whose lead is large enough."""
        asked = uncoloured(subject, self._lexicon)
        if not asked:
            return []
        rows = self._retriever.embed_images(regions_of(photo))
        found = []
        for thing in asked:
            own = rows[int((rows @ self._phrases.rows([f"a {thing}"])[0]).argmax())]
            cosines = self._phrases.rows([f"a {colour} {thing}" for colour in COLOURS]) @ own
            first, second = cosines.argsort()[::-1][:2]
            lead = float(cosines[first] - cosines[second])
            if lead >= self._least:
                colour = COLOURS[int(first)]
                found.append(
                    Sight(statement=f"The {thing} is {colour}.", phrase=colour, of=thing, score=lead)
                )
        return sorted(found, key=lambda sight: -sight.score)


def uncoloured(subject: Subject, lexicon: Lexicon) -> list[str]:
    """Lemmas of things of which people speak in the singular, once each, and of whose colour nobody does."""
    kept, dropped = dict[str, None](), set[str]()
    for sentence in subject.sentences:
        own = nouns(sentence)
        counts = Counter(sentence.words[noun].lemma for noun in own)
        for noun in own:
            word = sentence.words[noun]
            if word.is_plural or counts[word.lemma] > 1 or colours(sentence, noun, lexicon):
                dropped.add(word.lemma)
            elif lexicon.concept(word) and not lexicon.is_person(word):
                kept.setdefault(word.lemma)
    return [lemma for lemma in kept if lemma not in dropped]


def open_expert(setting: ExpertSetting) -> AttributeExpert:
    """The expert with the retriever of a bundle."""
    least = LEAST if setting.least is None else setting.least
    return AttributeExpert(Retriever.open(setting.scorer), load_lexicon(), least=least)
