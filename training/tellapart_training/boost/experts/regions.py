"""The expert of things by regions: what the retriever finds in a part of the photo and nobody mentions.

Each region is compared with "a bench", "a fence" and so on, the leaves of the objects list of the
hallucination metric. The score is the cosine of the nearest region.
"""

from __future__ import annotations

from tellapart.retriever import Retriever
from tellapart.types import PixelArray
from tellapart_training.boost.experts.crops import Phrases, regions_of
from tellapart_training.boost.experts.expert import ExpertSetting, Sight
from tellapart_training.boost.lexicon import Lexicon, load_lexicon
from tellapart_training.boost.source import Subject

LEAST = 0.7
_MOST = 1


class RegionExpert:
    """Names things; safe from many threads.

    Args:
        retriever: whose similarity is trusted.
        lexicon: with the list of things.
        least: least cosine.
    """

    name = "regions"

    def __init__(self, retriever: Retriever, lexicon: Lexicon, *, least: float = LEAST) -> None:
        self._retriever, self._lexicon, self._least = retriever, lexicon, least
        above = {name for names in lexicon.objects.broader.values() for name in names}
        animate = {"person", "animal"}
        self._things = tuple(
            name.replace("_", " ")
            for name, names in lexicon.objects.broader.items()
            if name not in above and name not in animate and not animate & names
        )
        self._phrases = Phrases(retriever)

    def see(self, photo: PixelArray, subject: Subject) -> list[Sight]:
        """The nearest thing that nobody mentions, if it is near enough."""
        said = {
            name
            for sentence in subject.sentences
            for word in sentence.words
            for concept in [self._lexicon.concept(word)]
            for name in (concept, *self._lexicon.objects.broader.get(concept, ()))
        }
        rows = self._retriever.embed_images([photo, *regions_of(photo)])
        cosines = (rows @ self._phrases.rows([f"a {thing}" for thing in self._things]).T).max(axis=0)
        found: list[Sight] = []
        for place in cosines.argsort()[::-1]:
            thing, score = self._things[int(place)], float(cosines[place])
            if score < self._least or len(found) == _MOST:
                break
            if thing.replace(" ", "_") not in said:
                article = "an" if thing[0] in "aeio" else "a"
                found.append(
                    Sight(
                        statement=f"There is {article} {thing}.", phrase=f"with {article} {thing} in view",
                        thing=thing, score=score,
                    )
                )  # fmt: skip
        return found


def open_expert(setting: ExpertSetting) -> RegionExpert:
    """The expert with the retriever of a bundle."""
    least = LEAST if setting.least is None else setting.least
    return RegionExpert(Retriever.open(setting.scorer), load_lexicon(), least=least)
