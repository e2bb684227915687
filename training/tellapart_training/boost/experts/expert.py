"""What a vision expert is: something with a name that turns a photo into short statements.

Its statements may add to what people wrote; the checks never let them contradict it. A detector joins by a
package of its own that registers a factory under the entry point `tellapart.experts`, see `registry.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tellapart.types import PixelArray

if TYPE_CHECKING:
    from tellapart_training.boost.source import Subject


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One thing that an expert sees.

    Attributes:
        statement: a short English sentence, for a language model and for the checks.
        phrase: words that the extractive blend may add; "" adds nothing.
        of: lemma of the noun before which the phrase stands; "" puts it at the end of the sentence.
        thing: noun of a thing that nobody mentions; what can move by itself is never added.
        score: how sure the expert is, on its own scale.
    """

    statement: str
    phrase: str = ""
    of: str = ""
    thing: str = ""
    score: float = 0.0


class Expert(Protocol):
    """Whatever sees something in a photo."""

    name: str

    def see(self, photo: PixelArray, subject: Subject) -> list[Sight]:
        """What is seen, surest first; may be nothing. Called by many threads.

        Args:
            photo: (h, w, 3) uint8, RGB, upright.
            subject: what people wrote about it, so that a question can be put about their words.
        """


@dataclass(frozen=True, kw_only=True)
class ExpertSetting:
    """What a factory of experts is given.

    Attributes:
        least: scores below this are kept to itself; None is the expert's own threshold.
        scorer: bundle of the retriever; None is the embedded one.
        captioner: bundle of the captioner; None is the embedded one.
    """

    least: float | None = None
    scorer: Path | None = None
    captioner: Path | None = None
