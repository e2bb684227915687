"""The expert that captions: our own captioner's sentence, as one more statement.

It adds nothing to an extractive blend, for a small captioner invents things; a language model may take from
it what fits what people wrote.
"""

from __future__ import annotations

from tellapart.captioner import Captioner
from tellapart.types import PixelArray
from tellapart_training.boost.experts.expert import ExpertSetting, Sight
from tellapart_training.boost.source import Subject


class CaptionExpert:
    """Captions photos; safe from many threads.

    Args:
        captioner: of a bundle.
        least: least calibrated confidence, in [0, 1]; a bundle without calibration passes at 0 alone.
    """

    name = "captioner"

    def __init__(self, captioner: Captioner, *, least: float = 0.0) -> None:
        self._captioner, self._least = captioner, least

    def see(self, photo: PixelArray, subject: Subject) -> list[Sight]:
        """The caption, if it is sure enough."""
        caption = self._captioner.caption(photo)
        score = caption.confidence or 0.0
        return [Sight(statement=f"{caption.text}.", score=score)] if score >= self._least else []


def open_expert(setting: ExpertSetting) -> CaptionExpert:
    """The expert with the captioner of a bundle."""
    return CaptionExpert(Captioner.open(setting.captioner), least=setting.least or 0.0)
