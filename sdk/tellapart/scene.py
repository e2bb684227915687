"""Whether a camera still sees what was captioned last: a gate on image embeddings.

One scene described a little differently every second is noise to whoever listens. The gate holds the row of
the frame that was captioned last and lets a frame through when it has moved away from it for good:

    same --- cosine below `change_below` ---> changing --- two looks alike, or patience over ---> new
      ^                                          |
      +------- cosine back at `same_above` ------+        (somebody walked through; nothing to say)

Two bars instead of one are hysteresis: a scene at the edge does not flicker between the two states. Drift is
seen as well, because a frame is held against the one that was captioned, never against the one before.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from tellapart.errors import UsageError
from tellapart.types import FloatArray

__all__ = ["SceneGate", "SceneState"]

SceneState: TypeAlias = Literal["new", "same", "changing"]
"""What the gate says of one look."""


class SceneGate:
    """Decides which looks are worth a caption; not safe from several threads at once.

    The bars fit the embedded bundle: on the sample photos a shift by a tenth of the width, a third less
    light or mild noise stay above 0.9, strong noise above 0.82, and two photos lie below 0.5.

    Attributes:
        similarity: cosine in [-1, 1] of the last look with the frame captioned last; None before that.
    """

    def __init__(
        self,
        *,
        change_below: float = 0.75,
        same_above: float = 0.85,
        settled_above: float = 0.9,
        patience: int = 4,
    ) -> None:
        """Set the bars.

        Args:
            change_below: a cosine with the captioned frame below this begins a change.
            same_above: a cosine at or above this ends it again; at least `change_below`.
            settled_above: while changing, a cosine with the look before at or above this means that the view
                has come to rest, and the frame is new.
            patience: while changing, the frame is new after this many looks even if nothing comes to rest, as
                with a moving camera; 0 lets the first frame through that differs.

        Raises:
            UsageError: a bar outside of [-1, 1], the two bars crossed, or a negative patience.
        """
        for name, value in (
            ("change_below", change_below),
            ("same_above", same_above),
            ("settled_above", settled_above),
        ):
            if not -1.0 <= value <= 1.0:
                raise UsageError(f"{name} is a cosine and must lie in [-1, 1], got {value!r}")
        if same_above < change_below:
            raise UsageError(f"same_above ({same_above:g}) must be at least change_below ({change_below:g})")
        if patience < 0:
            raise UsageError(f"patience must be at least 0 looks, got {patience!r}")
        self._change_below, self._same_above = change_below, same_above
        self._settled_above, self._patience = settled_above, patience
        self._captioned: FloatArray | None = None
        self._before: FloatArray | None = None
        self._waited: int | None = None  # looks since the change began; None while the scene is the same
        self.similarity: float | None = None

    def decide(self, embedding: FloatArray) -> SceneState:
        """Take one look; "new" makes it the frame that later ones are held against.

        Args:
            embedding: (E,) or (1, E) float32 of unit length, as in `View.embedding`.

        Returns:
            "new": caption it. "same": nothing to say. "changing": wait, the next looks decide.
        """
        row: FloatArray = np.asarray(embedding, np.float32).reshape(-1)
        state = self._judge(row)
        self._before = row
        if state == "new":
            self._captioned, self._waited = row, None
        return state

    def forget(self) -> None:
        """Begin anew: the next look is new, whatever it shows."""
        self._captioned = self._before = self._waited = self.similarity = None

    def _judge(self, row: FloatArray) -> SceneState:
        if self._captioned is None or self._before is None:
            return "new"
        self.similarity = float(np.clip(self._captioned @ row, -1.0, 1.0))
        if self._waited is None:
            if self.similarity >= self._change_below:
                return "same"
            self._waited = 0
            return "changing" if self._patience else "new"
        if self.similarity >= self._same_above:
            self._waited = None
            return "same"
        self._waited += 1
        settled = float(self._before @ row) >= self._settled_above
        return "new" if settled or self._waited >= self._patience else "changing"
