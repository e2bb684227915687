"""HolisticCap without a language model: a blend, and added to it what experts see and nobody contradicts.

What is added comes from the photo and not from a person, and every output says which words those are and who
saw them. A colour is added to a thing that people name without one; text and things that nobody mentions
stand at the end ("with the word ... in view"), for nobody knows what they stand on. Each addition passes the
checks or is left out, and the blend stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tellapart_training.boost.checks import Candidate, Checker
from tellapart_training.boost.experts.expert import Sight
from tellapart_training.boost.facts import colours, modifiers, nouns
from tellapart_training.boost.lexicon import Lexicon
from tellapart_training.boost.outcome import Outcome
from tellapart_training.boost.parsing import Parser, Sentence
from tellapart_training.boost.phrases import Graft
from tellapart_training.boost.source import Subject
from tellapart_training.boost.vision import Vision
from tellapart_training.boost.writing import Draft


class Holistic:
    """Adds to blends what experts see.

    Args:
        vision: with experts.
        checker: rules that are on.
        parser: of the longer captions.
        max_words: no caption grows beyond this.
    """

    def __init__(self, vision: Vision, checker: Checker, parser: Parser, *, max_words: int) -> None:
        self._vision, self._checker, self._parser = vision, checker, parser
        self._max_words = max_words

    def enrich(self, subject: Subject, outcome: Outcome) -> None:
        """Add to an image's captions; what may not be added is counted among its rejections."""
        if not outcome.captions:
            return
        seen = self._vision.see(subject, outcome.rejected)
        outcome.details["vision"] = seen.record()
        for place, written in enumerate(outcome.captions):
            added: list[Sight] = []
            for name, sight in seen.sights:
                longer = self._with(subject, written.text, [*added, sight], outcome) if sight.phrase else ""
                if longer:
                    added.append(sight)
                    written = replace(written, text=longer, seen=(*written.seen, (name, sight.phrase)))
            outcome.captions[place] = written

    def _with(self, subject: Subject, text: str, sights: Sequence[Sight], outcome: Outcome) -> str:
        """A caption with the last of some sights, the others being in it already; "" where it may not be."""
        new = sights[-1]
        if contradicted(new, subject.sentences, self._checker.lexicon):
            outcome.rejected["vision: contradicted"] += 1
            return ""
        longer = with_sight(self._parser.parse([text])[0], new, self._checker.lexicon)
        if not longer or len(longer.split()) > self._max_words:
            outcome.rejected["vision: no room"] += 1
            return ""
        told = [part for sight in sights for part in (sight.statement, sight.phrase)]
        sentence, *statements = self._parser.parse([longer, *told])
        rule, _ = self._checker.check(
            Candidate(
                text=longer,
                sentence=sentence,
                humans=subject.sentences,
                vision=statements,
                exact=True,
                image=subject.record.image,
            )
        )
        if rule:
            outcome.rejected[f"vision: {rule}"] += 1
        return "" if rule else longer


def contradicted(sight: Sight, humans: Sequence[Sentence], lexicon: Lexicon) -> bool:
    """Whether what people wrote speaks against a sight.

    Against a colour where somebody gives the thing one, or speaks of several; against a thing that somebody
    mentions, or that can move by itself, for people mention those.
    """
    for human in humans:
        own = nouns(human)
        same = [noun for noun in own if human.words[noun].lemma == sight.of]
        if sight.of and (
            len(same) > 1
            or any(human.words[noun].is_plural or colours(human, noun, lexicon) for noun in same)
        ):
            return True
        if sight.thing and any(sight.thing.split()[-1] in (word.lower, word.lemma) for word in human.words):
            return True
    concept = lexicon.objects.concept_of.get(tuple(sight.thing.split()), "")
    above = {concept, *lexicon.objects.broader.get(concept, ())}
    return bool(sight.thing) and bool(above & {"person", "animal"})


def with_sight(sentence: Sentence, sight: Sight, lexicon: Lexicon) -> str:
    """A caption with a sight's words; "" where there is no place for them."""
    draft, words = Draft(sentence), tuple(sight.phrase.split())
    if not sight.of:
        last = max(index for index, word in enumerate(sentence.words) if word.is_word)
        draft.insert(last, Graft("seen", words, last, frozenset(words), "seen"))
        return draft.text()
    same = [noun for noun in nouns(sentence) if sentence.words[noun].lemma == sight.of]
    if len(same) != 1 or len(modifiers(sentence, same[0])) > 1:
        return ""
    graft = Graft("modifier", words, same[0], frozenset(words), "modifier:colour")
    return draft.text() if draft.add_modifier(graft, lexicon) else ""
