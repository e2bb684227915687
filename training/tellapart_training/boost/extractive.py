"""The offline generator: blends, each checked like anybody else's captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tellapart_training.boost.blend import Blend, BlendOptions, blend_captions
from tellapart_training.boost.checks import Candidate, Checker
from tellapart_training.boost.outcome import Outcome, Written
from tellapart_training.boost.parsing import Parser, Sentence
from tellapart_training.boost.source import Subject
from tellapart_training.boost.writing import spell

VERSION = "1"
"""Of the blend's rules; raised when its captions change."""


class Extractive:
    """Blends the captions of images.

    Args:
        parser: parses the blends once more, for the checks.
        checker: rules that are on.
        options: how much is grafted.
        per_image: captions for each image at most.
    """

    def __init__(self, parser: Parser, checker: Checker, options: BlendOptions, *, per_image: int) -> None:
        self._parser, self._checker, self._options = parser, checker, options
        self._per_image = per_image

    def write(self, subjects: Sequence[Subject]) -> list[Outcome]:
        """Boosted captions of some images, in order; the best bases first."""
        blends = [self._blends(subject) for subject in subjects]
        # What will most likely be kept is parsed in one go; the few that take their places one by one.
        first = [blend.text for found in blends for blend in found[: self._per_image]]
        parses = dict(zip(first, self._parser.parse(first), strict=True))
        return [self._choose(subject, found, parses) for subject, found in zip(subjects, blends, strict=True)]

    def _blends(self, subject: Subject) -> list[Blend]:
        if not subject.sentences:
            return []
        found = blend_captions(
            subject.sentences,
            lexicon=self._checker.lexicon,
            options=self._options,
            limit=len(subject.sentences),
        )
        # At the end the captions as they are: a plain one is better than none.
        plain = [Blend(spell([text]), base) for base, text in enumerate(subject.texts)]
        plain.sort(key=lambda blend: -len(blend.text))
        known = {blend.text for blend in found}
        return found + [blend for blend in plain if blend.text not in known]

    def _choose(self, subject: Subject, found: Sequence[Blend], parses: Mapping[str, Sentence]) -> Outcome:
        outcome = Outcome(subject.record.image)
        outcome.details = {"model": self._parser.name, "version": VERSION, "prompt": None, "decoding": None}
        for blend in found:
            if len(outcome.captions) >= self._per_image:
                break
            sentence = parses.get(blend.text) or self._parser.parse([blend.text])[0]
            rule, _ = self._checker.check(
                Candidate(
                    text=blend.text,
                    sentence=sentence,
                    humans=subject.sentences,
                    exact=True,
                    image=subject.record.image,
                )
            )
            if rule:
                outcome.rejected[rule] += 1
            else:
                outcome.captions.append(Written(blend.text, blend.base, blend.grafts))
        if not outcome.captions:
            outcome.dropped = "no caption that can be used" if not subject.texts else "no caption passed"
        return outcome
