"""What `tellapart boost` is asked to do, as a dataclass and as argparse reads it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path

from tellapart.errors import UsageError
from tellapart_training.boost.chat_options import ChatOptions, add_chat_arguments, chat_options_of
from tellapart_training.boost.checks import RULES
from tellapart_training.boost.local_chat import check_extra

GENERATORS = ("extractive", "endpoint", "local")


@dataclass(frozen=True, kw_only=True)
class BoostOptions:
    """What is boosted, how, and where it goes."""

    captions: Path
    """Human captions, in any format that training reads."""
    out: Path
    """JSON lines with the boosted captions, for training; written whole at the end."""
    images: Path | None = None
    """Folder or uncompressed .tar of photos: for the page, for experts and for the similarity rule."""
    split: tuple[str, ...] = ()
    """Only these splits; empty takes all."""
    limit: int = 0
    """Only the first N images; 0 takes all."""
    shard: str = "1/1"
    """I/N: the I-th of N parts of the images, told apart by a hash of the name."""
    bad_lines: str = "error"
    """"skip" counts lines that cannot be read and goes on."""
    generator: str = "extractive"
    """Who writes; the extractive blend needs no model."""
    chat: ChatOptions = field(default_factory=ChatOptions)
    """Of the generators that ask a language model."""
    per_image: int = 1
    """Captions for each image at most; the extractive blend grows each from another base."""
    agreement: int = 1
    """How many other captions must speak of what is grafted."""
    max_words: int = 32
    """Longest blend; what is longer already grows no further."""
    limit_words: int = 40
    """Longest caption that passes the check."""
    vocabulary: Path | None = None
    """Bundle whose vocabulary bounds the length; None is the embedded one."""
    scorer: Path | None = None
    """Bundle of the retriever that judges similarity; None is the embedded one."""
    captioner: Path | None = None
    """Bundle of the captioner among the vision experts; None is the embedded one."""
    clip: str = ""
    """Folder of a CLIP tokenizer for exact counts; "" estimates from above."""
    checks_off: tuple[str, ...] = ()
    """Rules that are not applied."""
    seed: int = 0
    """Of the examples on the page."""
    html: Path | None = None
    """Page that shows before and after."""
    json: bool = False
    """Print the report as JSON."""

    def __post_init__(self) -> None:
        unknown = set(self.checks_off) - {*RULES, "similarity"}
        if unknown:
            raise UsageError(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(RULES)}")
        if self.generator not in GENERATORS:
            raise UsageError(f"no generator {self.generator!r}: choose {', '.join(GENERATORS)}")
        if self.per_image < 1 or self.limit < 0 or self.agreement < 1 or self.max_words < 3:
            raise UsageError("--per-image and --agreement from 1, --max-words from 3, --limit from 0")
        if self.generator == "extractive" and (self.chat.looks or self.chat.dry_run):
            raise UsageError(
                "--vision endpoint, --vision local and --dry-run need a language model that writes: give "
                "--generator endpoint or local"
            )
        if self.generator == "endpoint" and not self.chat.chat_model:
            raise UsageError("--generator endpoint needs --chat-model")
        self._check_local()
        if self.generator != "extractive" and self.per_image > 1 and self.chat.temperature == 0:
            raise UsageError(
                "a model says the same each time at temperature 0: --per-image needs --temperature"
            )
        if self.chat.vision and self.images is None:
            raise UsageError("--vision needs --images, the photos to look at")
        self.part()

    def _check_local(self) -> None:
        chat = self.chat
        if (self.generator == "local") != bool(chat.local_model):
            raise UsageError("--generator local and --local-model go together")
        if "local" in (self.generator, *chat.vision):
            check_extra(chat.extra, samples=chat.temperature > 0)
        if chat.looks and self.generator not in chat.vision and not chat.vision_model:
            looker = "endpoint" if "endpoint" in chat.vision else "local"
            raise UsageError(f"--vision {looker} beside --generator {self.generator} needs --vision-model")

    @property
    def journal(self) -> Path:
        """Where answers are kept."""
        return self.chat.journal or self.out.with_name(f"{self.out.name}.journal")

    def part(self) -> tuple[int, int]:
        """The shard as (which, of how many), from 1.

        Raises:
            UsageError: not I/N with 1 <= I <= N.
        """
        which, slash, many = self.shard.partition("/")
        if slash and which.isdecimal() and many.isdecimal() and 1 <= int(which) <= int(many):
            return int(which), int(many)
        raise UsageError(f"--shard must be I/N with I from 1 to N, got {self.shard!r}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option of the verb, with the defaults of `BoostOptions`."""
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE", help="human captions")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="boosted captions")
    parser.add_argument("--images", type=Path, metavar="DIR|TAR", help="photos of the captions")
    parser.add_argument("--split", nargs="+", default=(), metavar="NAME", help="only these splits")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N images")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="the I-th of N parts of the images")
    parser.add_argument(
        "--bad-lines", choices=("error", "skip"), default="error", help="skip: count them and go on"
    )
    parser.add_argument("--generator", choices=GENERATORS, default="extractive", help="who writes")
    parser.add_argument("--per-image", type=int, default=1, metavar="N", help="captions for each image")
    blend = parser.add_argument_group("extractive blend")
    blend.add_argument(
        "--agreement", type=int, default=1, metavar="N", help="other captions that must speak of a graft"
    )
    blend.add_argument(
        "--max-words",
        type=int,
        default=32,
        metavar="N",
        help="grow no further than this; ask models for no more",
    )
    add_chat_arguments(parser)
    checks = parser.add_argument_group("checks")
    checks.add_argument("--limit-words", type=int, default=40, metavar="N", help="longest valid caption")
    checks.add_argument("--vocabulary", type=Path, metavar="BUNDLE", help="its vocabulary bounds the length")
    checks.add_argument("--scorer", type=Path, metavar="BUNDLE", help="retriever of similarity and experts")
    checks.add_argument("--captioner", type=Path, metavar="BUNDLE", help="of the expert of that name")
    checks.add_argument("--clip", default="", metavar="FOLDER", help="CLIP tokenizer, for exact counts")
    checks.add_argument(
        "--no-check", dest="checks_off", action="append", default=[], metavar="RULE",
        help=f"switch a rule off; may be repeated: {', '.join(RULES)}, similarity",
    )  # fmt: skip
    report = parser.add_argument_group("report")
    report.add_argument("--html", type=Path, metavar="FILE", help="page that shows before and after")
    report.add_argument("--json", action="store_true", help="report as JSON on stdout")
    report.add_argument("--seed", type=int, default=0, metavar="N", help="of the examples on the page")


def options_of(arguments: argparse.Namespace) -> BoostOptions:
    """The options that a user typed.

    Raises:
        UsageError: some that do not go together.
    """
    given = {one.name: getattr(arguments, one.name) for one in fields(BoostOptions) if one.name != "chat"}
    given["chat"] = chat_options_of(arguments)
    given["split"], given["checks_off"] = tuple(given["split"]), tuple(given["checks_off"])
    return BoostOptions(**given)
