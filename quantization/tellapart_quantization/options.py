"""What to quantize, how, and what to prove it on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tellapart.errors import UsageError
from tellapart_quantization.report import Budget
from tellapart_quantization.schemes import AUTO, SCHEMES


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """What to make and what to prove it on."""

    images: Path
    """Folder or tar of photos, for calibration and for the comparison."""

    scheme: str = "vnni"
    """A name out of `SCHEMES`, or "auto"."""

    keep_float: tuple[str, ...] | None = None
    """Blocks of the trunk that stay in float; None takes the scheme's, ("auto",) measures."""

    auto_blocks: int = 3
    """Most blocks that "auto" keeps."""

    calibration_limit: int | None = None
    """Most photos to calibrate on; None takes the scheme's number."""

    check_images: int = 200
    """Most photos to compare on."""

    captions: Path | None = None
    """JSON lines with human captions; retrieval is compared where they are given."""

    split: str | None = None
    """Compare on this split of `captions` and calibrate on the rest."""

    benchmark: Path | None = None
    """Folder of a TrueMatch-style benchmark; self-retrieval on its bags is compared where it is given."""

    benchmark_images: Path | None = None
    """Folder or tar of its photos; None looks where the benchmark says."""

    limit_bags: int | None = None
    """First so many bags of each size; None takes all."""

    scorer: Path | None = None
    """Bundle whose retriever judges the captions of both bundles; None takes the float bundle's."""

    budget: Budget = dataclasses.field(default_factory=Budget)

    overwrite: bool = False
    """Replace a bundle that is there."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.scheme not in (*SCHEMES, AUTO):
            known = ", ".join((*SCHEMES, AUTO))
            raise UsageError(f"scheme {self.scheme!r} is not known; choose one of {known}")
        if self.budget.max_cider_drop is not None and self.captions is None:
            raise UsageError("--max-cider-drop needs human captions to compare with (--captions)")
        limit = 1 if self.calibration_limit is None else self.calibration_limit
        if min(limit, self.check_images, self.auto_blocks) < 1:
            raise UsageError("calibration limit, check images and auto blocks have to be at least 1")
        if self.split is not None and self.captions is None:
            raise UsageError("a split needs the captions file that tells who is in it (--captions)")
        needless = {"--benchmark-images": self.benchmark_images, "--limit-bags": self.limit_bags}
        needless["--scorer"] = self.scorer
        given = [flag for flag, value in needless.items() if value is not None]
        if self.benchmark is None and given:
            raise UsageError(f"{', '.join(given)} is of use only with a benchmark (--benchmark)")
