"""The whole command line as argparse reads it: verbs, options, and their help.

Only argparse is imported here, so `--help` and a wrong argument answer at once. Ranges are checked where
the values live (`DecodeOptions`, `RuntimeOptions`), not a second time here.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tellapart._version import __version__

if TYPE_CHECKING:
    Verbs: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["ELSEWHERE", "Elsewhere", "build_parser", "verbs_of"]


@dataclass(frozen=True)
class Elsewhere:
    """A verb of another package: `module.main([*prefix, *arguments])` answers it."""

    module: str
    extra: str
    help: str
    prefix: tuple[str, ...] = ()


ELSEWHERE = {
    "app": Elsewhere("tellapart_app.cli", "app", "a page in the browser of this machine", ("app",)),
    "desktop": Elsewhere("tellapart_app.cli", "desktop", "a window to drop photos into", ("desktop",)),
    "export": Elsewhere("tellapart_export.cli", "export", "make a device bundle of a checkpoint"),
    "quantize": Elsewhere("tellapart_quantization.cli", "quantize", "make an INT8 bundle of a bundle"),
    "train": Elsewhere("tellapart_training.cli", "train", "train a captioner or a retriever", ("train",)),
    "average": Elsewhere("tellapart_training.cli", "train", "average checkpoints of one start", ("average",)),
    "mine-bags": Elsewhere(
        "tellapart_training.cli", "train", "mine bags of look-alike images to train on", ("mine-bags",)
    ),
    "calibrate": Elsewhere(
        "tellapart_training.calibrate", "evaluate", "fit the confidence of a bundle's captions"
    ),
    "presence": Elsewhere(
        "tellapart_training.presence", "train", "fit how likely people are to say each piece of an image"
    ),
    "boost": Elsewhere(
        "tellapart_training.cli", "boost", "merge human captions into richer ones for training", ("boost",)
    ),
    "evaluate": Elsewhere(
        "tellapart_training.cli", "evaluate", "score captions and retrieval on a data set", ("evaluate",)
    ),
}
"""Verbs that are handed on by name; `cli` sees them before argparse does."""


def build_parser() -> argparse.ArgumentParser:
    """The parser; after parsing, `args.module` names the module whose `run(args)` does the work."""
    parser = argparse.ArgumentParser(
        prog="tellapart",
        description="Captions that tell pictures apart, made offline.",
        epilog="`tellapart VERB --help` says more about each verb.",
    )
    parser.add_argument("--version", action="version", version=f"tellapart {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    everywhere = _everywhere()
    _add_caption(verbs, everywhere)
    _add_bag(verbs, everywhere)
    _add_search(verbs, everywhere)
    _add_truematch(verbs, everywhere)
    _add_bench(verbs, everywhere)
    _add_inspection(verbs, everywhere)
    for verb, elsewhere in ELSEWHERE.items():  # only for the list in --help
        verbs.add_parser(verb, help=f"{elsewhere.help} (extra: {elsewhere.extra})", add_help=False)
    return parser


def verbs_of(parser: argparse.ArgumentParser) -> list[str]:
    """The verbs that a parser knows, in the order of its help."""
    [verbs] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return list(verbs.choices)


def _threads(text: str) -> int | str:
    return text if text == "auto" else int(text)


# argparse names the converter in its message: "invalid threads value: 'x'".
_threads.__name__ = "threads"


def _least_confidence(text: str) -> float | str:
    return text if text == "default" else float(text)


_least_confidence.__name__ = "confidence"


def _everywhere() -> argparse.ArgumentParser:
    """What every verb understands."""
    shared = argparse.ArgumentParser(add_help=False)
    group = shared.add_argument_group("model and machine")
    group.add_argument(
        "--model", type=Path, metavar="BUNDLE", help="bundle to use (default: the embedded one)"
    )
    group.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "onnxruntime", "openvino", "coreml"),
        help="runtime for the graphs (default: auto)",
    )
    group.add_argument(
        "--provider", action="append", default=[], metavar="NAME", help="execution provider; may be repeated"
    )
    group.add_argument(
        "--provider-option",
        action="append",
        default=[],
        nargs=2,
        metavar=("NAME", "KEY=VALUE"),
        help="setting of a --provider, as its runtime spells it; may be repeated",
    )
    group.add_argument("--threads", type=_threads, default="auto", metavar="N|auto", help="threads per image")
    group.add_argument(
        "--spin",
        action="store_true",
        help="threads wait for each other by spinning while a graph runs: quicker on an idle machine only",
    )
    group.add_argument("-v", "--verbose", action="store_true", help="say on stderr what was chosen and why")
    return shared


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding (defaults: what the bundle says)")
    group.add_argument("--beams", type=int, metavar="N", help="beams kept side by side; 1 is greedy")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="most pieces in a caption")
    group.add_argument("--length-penalty", type=float, metavar="X", help="power of length in a beam's score")
    group.add_argument(
        "--rerank",
        type=float,
        metavar="X",
        help="weight of the retriever in choosing among the beams; 0 is none",
    )
    group.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="G",
        help="above 1: more of what is in the image, less of what any caption says (default: 1, off)",
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="above 0: sample instead of searching"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="when sampling: mass kept, (0, 1]"
    )
    group.add_argument("--seed", type=int, metavar="N", help="when sampling: makes it repeatable")
    group.add_argument("--deadline-ms", type=float, metavar="MS", help="stop a caption after this long")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-megapixels",
        type=float,
        metavar="MP",
        help="refuse larger images by their header (default: 50, or TELLAPART_MAX_MEGAPIXELS)",
    )


def _add_caption(verbs: Verbs, everywhere: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "caption",
        parents=[everywhere],
        help="caption images, or folders of images",
        description="Caption images. A folder stands for every image in it and below it. An image that "
        "cannot be read is named on stderr, the others go on, and the exit status is 1.",
    )
    parser.set_defaults(module="tellapart.commands.caption")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image, or folder of images")
    out = parser.add_argument_group(
        "where captions go (default: lines on stdout)"
    ).add_mutually_exclusive_group()
    out.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    out.add_argument("--jsonl", type=Path, metavar="FILE", help="one JSON object a line into FILE")
    out.add_argument(
        "--sidecar",
        choices=("txt", "json", "xmp"),
        help="photo.jpg gets photo.txt, photo.json or photo.jpg.xmp (alt text) beside it",
    )
    out.add_argument("--stream", action="store_true", help="show each piece as it is found")
    parser.add_argument(
        "--resume", action="store_true", help="with --jsonl, --sidecar: only what is not done"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="with --jsonl, --sidecar: replace what is there"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images per pass (default: 8)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="images at once, one thread each (default for several images: the cores, at most 8)",
    )
    parser.add_argument("--n-best", type=int, default=1, metavar="N", help="captions per image (default: 1)")
    parser.add_argument(
        "--min-confidence",
        type=_least_confidence,
        metavar="C|default",
        help="mark captions of a lower confidence, in [0, 1], as unsure; default: the bundle's threshold",
    )
    _add_images(parser)
    _add_decoding(parser)


def _add_bag(verbs: Verbs, everywhere: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "bag",
        parents=[everywhere],
        help="caption look-alike images so that each caption picks out its own",
        description="Caption a bag of at least two images and let the retriever judge: the rank of each "
        "caption's own image among all (1 is best) and the margin to the best other image.",
    )
    parser.set_defaults(module="tellapart.commands.bag")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="image, or folder of images")
    parser.add_argument(
        "--mode",
        choices=("contrast", "rerank", "plain"),
        default="rerank",
        help="contrast: each image's words are steered away from its look-alikes'; rerank: the retriever "
        "picks among several captions (default); plain: each image alone",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page that shows photos and proof"
    )
    parser.add_argument("--n-best", type=int, metavar="N", help="captions per image that rerank chooses from")
    _add_images(parser)
    _add_decoding(parser)


def _add_search(verbs: Verbs, everywhere: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "search",
        parents=[everywhere],
        help="find the images of a folder that fit a sentence",
        description="Find images by a sentence. The first search of a folder looks at every image; later "
        "ones look only at images that are new or changed.",
    )
    parser.set_defaults(module="tellapart.commands.search")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("query", metavar="QUERY")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="how many to show (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_images(parser)


def _add_truematch(verbs: Verbs, everywhere: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "truematch",
        help="measure whether captions tell look-alike images apart, over many bags",
        description="Each image is captioned alone; the scorer then sees whether its caption finds it "
        "in a bag of look-alikes. Reads the published format, and makes benchmarks of any photos.",
    )
    steps = parser.add_subparsers(title="steps", metavar="run|build", required=True)
    _add_truematch_run(steps, everywhere)
    _add_truematch_build(steps, everywhere)


def _add_truematch_run(steps: Verbs, everywhere: argparse.ArgumentParser) -> None:
    parser = steps.add_parser(
        "run",
        parents=[everywhere],
        help="score captions on a benchmark",
        description="Recall@1 per bag size with a 95 %% bootstrap interval. Without --captions the model "
        "captions every image here and now; without --scorer its own retriever judges, which flatters it.",
    )
    parser.set_defaults(module="tellapart.commands.truematch")
    parser.add_argument("folder", type=Path, metavar="DIR", help="it holds benchmark/3.json and its like")
    parser.add_argument("--captions", type=Path, metavar="FILE", help='score these: {"image id": "caption"}')
    parser.add_argument("--scorer", type=Path, metavar="BUNDLE", help="retriever that judges")
    parser.add_argument(
        "--ties",
        choices=("strict", "optimistic", "expected"),
        default="strict",
        help="an equal best image counts as a miss (default), a hit as published, or its chance",
    )
    parser.add_argument("--rd100", action="store_true", help="also retrieval among 100 random images")
    parser.add_argument("--images", type=Path, metavar="DIR|TAR", help="photos, where they lie elsewhere")
    parser.add_argument("--limit-bags", type=int, metavar="N", help="first N bags of a size; a quick look")
    parser.add_argument(
        "--save-captions", type=Path, metavar="FILE", help="keep the captions, for --captions"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page of bags and plots")
    parser.add_argument(
        "--html-bags", type=int, default=20, metavar="N", help="bags of a size on the page (default: 20)"
    )
    _add_images(parser)
    _add_decoding(parser)


def _add_truematch_build(steps: Verbs, everywhere: argparse.ArgumentParser) -> None:
    parser = steps.add_parser(
        "build",
        parents=[everywhere],
        help="make a TrueMatch-style benchmark of photos",
        description="Mines bags of look-alikes with the bundle's retriever: from the photos, and from the "
        "captions that people wrote where --captions gives them.",
    )
    parser.set_defaults(module="tellapart.commands.truematch_build")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder or uncompressed tar of photos")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--captions", type=Path, metavar="FILE", help='JSON lines {"image", "split", "captions"}'
    )
    parser.add_argument("--split", metavar="NAME", help="with --captions: only images of this split")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[3, 5, 7], metavar="K", help="bag sizes (default: 3 5 7)"
    )
    parser.add_argument(
        "--band",
        choices=("hard", "medium", "easy"),
        default="hard",
        help="others of a bag: the nearest (default), ranks 50 to 200, ranks 1000 and beyond",
    )
    parser.add_argument("--max-bags", type=int, metavar="N", help="at most N bags of a size")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        metavar="N",
        help="mine hard bags N times, each among the images that have none yet (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: 0)")
    parser.add_argument(
        "--near-duplicate",
        type=float,
        default=0.97,
        metavar="C",
        help="of images alike above this cosine keep one (default: 0.97)",
    )
    parser.add_argument("--force", action="store_true", help="replace a benchmark that is there")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_images(parser)


def _add_bench(verbs: Verbs, everywhere: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "bench",
        parents=[everywhere],
        help="measure speed and memory on this machine",
        description="Milliseconds per stage (first, p50, p95), tokens per second, peak memory, bundle size.",
    )
    parser.set_defaults(module="tellapart.commands.measure", measure="bench")
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="images to use (default: drawn noise)"
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="captions timed (default: 20)")
    parser.add_argument("--against", type=Path, metavar="BUNDLE", help="time this bundle too, in turns")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_images(parser)
    _add_decoding(parser)


def _add_inspection(verbs: Verbs, everywhere: argparse.ArgumentParser) -> None:
    for verb, text, more in (
        (
            "info",
            "say what is inside a bundle",
            "What a bundle is: its parts, sizes, licence and figures. Every hash is checked first; --verbose "
            "shows the reports of training, export and quantization.",
        ),
        (
            "verify",
            "check every hash and every shape of a bundle",
            "Hashes of all files against the manifest, then each graph once in the runtime, its outputs "
            "against the manifest. Exit status 1 says what is wrong and where.",
        ),
    ):
        parser = verbs.add_parser(verb, parents=[everywhere], help=text, description=more)
        parser.set_defaults(module="tellapart.commands.inspection", inspect=verb)
        parser.add_argument(
            "bundle", nargs="?", type=Path, metavar="BUNDLE", help="default: --model, else the embedded one"
        )
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser = verbs.add_parser(
        "doctor",
        parents=[everywhere],
        help="say what works here, what does not, and the command that mends it",
        description="One screen: runtime, pictures, model, a caption, the cache and every extra, each tried; "
        "what does not work comes with the one command that mends it. Then the number of threads is measured "
        "and remembered for --threads auto.",
    )
    parser.set_defaults(module="tellapart.commands.measure", measure="doctor")
    parser.add_argument("--no-measure", action="store_true", help="leave the measurement out")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
