"""`tellapart train init|warmup|mle|retriever` and `tellapart evaluate`; torch only where needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tellapart.errors import MissingExtraError
from tellapart_training.config import (
    STAGES,
    InitConfig,
    MleConfig,
    ReinforceConfig,
    RetrieverConfig,
    TrainConfig,
    WarmupConfig,
)
from tellapart_training.config_file import load_config

_NEEDED = ("torch", "accelerate", "safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: begins with the verb, `train` or `evaluate`.

    Returns:
        0 done, 1 something failed, 2 usage, a wrong config or a missing extra (`TellapartError` is left to
        the caller's table only when it comes through `tellapart.cli`).
    """
    arguments = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    if arguments.verb == "train":
        config = load_config(arguments.config, stage=arguments.stage, overrides=arguments.overrides)
        _train(config, resume=arguments.resume)
        return 0
    from tellapart_training.evaluate import EvaluateOptions, evaluate

    options = EvaluateOptions(
        images=arguments.images, captions=arguments.captions, split=arguments.split, model=arguments.model,
        checkpoint=arguments.checkpoint, out=arguments.out, captions_out=arguments.captions_out,
        beams=arguments.beams, limit=arguments.limit, batch_size=arguments.batch_size,
        threads=arguments.threads, df=arguments.df,
        resume=arguments.resume,
    )  # fmt: skip
    report = evaluate(options)
    print(report.to_json() if arguments.json else report.table())
    return 0


def _train(config: TrainConfig | InitConfig, *, resume: bool) -> None:
    try:
        if isinstance(config, InitConfig):
            from tellapart_training.initialise import initialise

            initialise(config)
        elif isinstance(config, WarmupConfig):
            from tellapart_training.warmup import train_warmup

            train_warmup(config, resume=resume)
        elif isinstance(config, MleConfig):
            from tellapart_training.mle import train_mle

            train_mle(config, resume=resume)
        elif isinstance(config, RetrieverConfig):
            from tellapart_training.retriever import train_retriever

            train_retriever(config, resume=resume)
        elif isinstance(config, ReinforceConfig):
            from tellapart_training.reinforce import train_reinforce

            train_reinforce(config, resume=resume)
    except ModuleNotFoundError as error:
        if error.name in _NEEDED:
            raise MissingExtraError(
                "train", f"training needs {error.name}, which is not installed"
            ) from error
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tellapart", description="Train and measure captioner and retriever."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="train one stage from a TOML config")
    train.add_argument(
        "stage",
        choices=sorted(STAGES),
        help="init: first checkpoint; warmup: decoder on text; mle: captioner; retriever; "
        "reinforce: captioner on the CIDEr-D of its own captions",
    )
    train.add_argument("--config", type=Path, required=True, help="TOML file, see training/configs")
    train.add_argument("--resume", action="store_true", help="go on from the newest state of the run folder")
    train.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="NAME=VALUE",
        help="override one key, for example optimizer.lr=0.001; may be repeated",
    )  # fmt: skip
    evaluate = verbs.add_parser("evaluate", help="captions and retrieval of a model on a split")
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument("--model", type=Path, help="device bundle (default: the embedded one)")
    which.add_argument("--checkpoint", type=Path, help="training checkpoint, run in torch")
    evaluate.add_argument("--images", type=Path, required=True, help="folder or uncompressed .tar")
    evaluate.add_argument("--captions", type=Path, required=True, help="captions file with references")
    evaluate.add_argument("--split", default="val", help='split to score ("" takes all)')
    evaluate.add_argument("--out", type=Path, help="report as JSON")
    evaluate.add_argument(
        "--captions-out", type=Path, help="captions as JSON lines; with --resume done ones are kept"
    )
    evaluate.add_argument(
        "--resume", action="store_true", help="keep captions that --captions-out already holds"
    )
    evaluate.add_argument("--beams", type=int, help="1 is greedy; default: the bundle's, 3 for a checkpoint")
    evaluate.add_argument("--limit", type=int, default=0, help="only the first N images")
    evaluate.add_argument("--batch-size", type=int, default=16)
    evaluate.add_argument("--threads", type=int, default=0, help="0 leaves the runtime's choice")
    evaluate.add_argument("--df", type=Path, help="fixed document frequencies for CIDEr-D (JSON)")
    evaluate.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
