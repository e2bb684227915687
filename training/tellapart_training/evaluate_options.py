"""What to measure on what: the options of `tellapart evaluate`, as a dataclass and as argparse reads them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tellapart.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure on what."""

    captions: Path
    """File with the references."""
    images: Path | None = None
    """Folder or uncompressed .tar; not needed for captions that are there and that nobody judges."""
    split: str = "val"
    """Split to score; "" takes all records."""
    model: Path | None = None
    """Device bundle; with no other subject None is the embedded one."""
    checkpoint: Path | None = None
    """Training checkpoint, run in torch."""
    captions_file: Path | None = None
    """Captions of any origin, scored instead of a model's."""
    human: int = 0
    """Scores the K-th human caption of each image, from 1, against the others of the image."""
    leave_out: int = 0
    """Leaves the K-th reference out, so that a model is scored against as many as `human` is."""
    judges: Mapping[str, Path] = field(default_factory=dict)
    """Retriever checkpoints by the name that their figures carry."""
    benchmark: Path | None = None
    """Folder of a benchmark: its bags, and its groups of 100."""
    fluency: Path | None = None
    """`warmup` checkpoint of a caption language model."""
    seed: int = 0
    """Of the groups of 100 where none are stored, and of the intervals."""
    cache: Path | None = None
    """Folder of what judges see of the images; None forgets it."""
    out: Path | None = None
    """Report as JSON."""
    captions_out: Path | None = None
    """Captions as JSON lines; the first line names the model."""
    resume: bool = False
    """Keep captions that `captions_out` holds already."""
    beams: int | None = None
    """1 is greedy; None is the bundle's default, 3 for a checkpoint."""
    guidance: float = 1.0
    """Of a bundle, as in `DecodeOptions`; 1 is none."""
    limit: int = 0
    """Only the first N images; 0 takes all."""
    batch_size: int = 16
    """Images decoded together."""
    threads: int = 0
    """0 leaves the runtime's choice."""
    df: Path | None = None
    """Stored document frequencies for CIDEr-D instead of those of the split."""

    def __post_init__(self) -> None:
        subjects = (self.model, self.checkpoint, self.captions_file, self.human or None)
        if sum(each is not None for each in subjects) > 1:
            raise UsageError("give one of --model, --checkpoint, --captions-file, --human, not both")
        if (
            min(self.limit, self.threads, self.human, self.leave_out) < 0
            or self.batch_size < 1
            or (self.beams is not None and self.beams < 1)
        ):
            raise UsageError(
                "--limit, --threads, --human and --leave-out must be at least 0, "
                "--batch-size and --beams at least 1"
            )
        if self.resume and self.captions_out is None:
            raise UsageError("--resume needs --captions-out, the file to go on with")
        if self.human and self.leave_out:
            raise UsageError("--human leaves its own caption out already: drop --leave-out")
        if self.captions_out is not None and not self.captions_by_model:
            raise UsageError("--captions-out keeps the captions of a model, and no model runs here")
        if self.guidance != 1 and (self.checkpoint is not None or not self.captions_by_model):
            raise UsageError("--guidance steers a device bundle; export the checkpoint, or leave it out")
        if self.images is None and (self.captions_by_model or self.judged):
            raise UsageError("give --images: a model or a judge has to see them")

    @property
    def captions_by_model(self) -> bool:
        """Whether a model captions, or the captions are there."""
        return self.captions_file is None and not self.human

    @property
    def judged(self) -> bool:
        """Whether anything is asked of `judged.Judges`."""
        return bool(self.judges) or self.benchmark is not None or self.fluency is not None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command line."""
    which = parser.add_argument_group("whose captions").add_mutually_exclusive_group()
    which.add_argument("--model", type=Path, help="device bundle (default: the embedded one)")
    which.add_argument("--checkpoint", type=Path, help="training checkpoint, run in torch")
    which.add_argument(
        "--captions-file", type=Path, metavar="FILE",
        help='captions of any origin: {"image": "caption"}, or .jsonl as --captions-out writes it',
    )  # fmt: skip
    which.add_argument(
        "--human", type=int, default=0, metavar="K",
        help="the K-th human caption of each image, from 1, against its others",
    )  # fmt: skip
    parser.add_argument("--images", type=Path, help="folder or uncompressed .tar")
    parser.add_argument("--captions", type=Path, required=True, help="captions file with references")
    parser.add_argument("--split", default="val", help='split to score ("" takes all)')
    parser.add_argument(
        "--leave-out", type=int, default=0, metavar="K",
        help="score without the K-th reference, to compare with --human on equal terms",
    )  # fmt: skip
    judging = parser.add_argument_group("judging (extra: train)")
    judging.add_argument(
        "--judge", action="append", default=[], metavar="NAME=CHECKPOINT",
        help="retriever that says whether captions find their images; may be repeated",
    )  # fmt: skip
    judging.add_argument("--benchmark", type=Path, metavar="DIR", help="bags of look-alikes, groups of 100")
    judging.add_argument(
        "--fluency", type=Path, metavar="CHECKPOINT", help="caption language model, a warmup checkpoint"
    )
    judging.add_argument("--seed", type=int, default=0, help="of groups of 100 and intervals (default: 0)")
    judging.add_argument("--cache", type=Path, metavar="DIR", help="keeps what judges see of the images")
    parser.add_argument("--out", type=Path, help="report as JSON")
    parser.add_argument(
        "--captions-out", type=Path, help="captions as JSON lines; with --resume done ones are kept"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep captions that --captions-out already holds"
    )
    parser.add_argument("--beams", type=int, help="1 is greedy; default: the bundle's, 3 for a checkpoint")
    parser.add_argument(
        "--guidance", type=float, default=1.0, metavar="G",
        help="of a bundle; above 1: more of what is in the image (default: 1, off)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=0, help="only the first N images")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the runtime's choice")
    parser.add_argument("--df", type=Path, help="fixed document frequencies for CIDEr-D (JSON)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")


def options_of(arguments: argparse.Namespace) -> EvaluateOptions:
    """Parsed arguments as options.

    Raises:
        UsageError: arguments that do not go together, or a --judge that is not NAME=CHECKPOINT.
    """
    given = {key: value for key, value in vars(arguments).items() if key not in ("verb", "json", "judge")}
    return EvaluateOptions(**given, judges=_judges(arguments.judge))


def _judges(texts: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not path or name in found:
            raise UsageError(f"--judge must be NAME=CHECKPOINT, each name once, got {text!r}")
        found[name] = Path(path)
    return found
