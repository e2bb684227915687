"""`tellapart train STAGE`, `average`, `mine-bags`, `boost`, `evaluate`; torch only where needed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tellapart.errors import MissingExtraError
from tellapart_training import evaluate_options
from tellapart_training.boost import options as boost_options
from tellapart_training.config import (
    STAGES,
    GrammarConfig,
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
    if arguments.verb == "mine-bags":
        _mine(arguments)
        return 0
    if arguments.verb == "average":
        _average(arguments)
        return 0
    if arguments.verb == "boost":
        return _boost(arguments)
    from tellapart_training.evaluate import evaluate

    report = evaluate(evaluate_options.options_of(arguments))
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
        elif isinstance(config, GrammarConfig):
            from tellapart_training.grammar_stage import train_grammar

            train_grammar(config, resume=resume)
    except ModuleNotFoundError as error:
        if error.name in _NEEDED:
            raise MissingExtraError(
                "train", f"training needs {error.name}, which is not installed"
            ) from error
        raise


def _average(arguments: argparse.Namespace) -> None:
    try:
        from tellapart_training.average import average_checkpoints
    except ModuleNotFoundError as error:
        if error.name in _NEEDED:
            raise MissingExtraError(
                "train", f"averaging needs {error.name}, which is not installed"
            ) from error
        raise
    print(average_checkpoints(arguments.checkpoints, arguments.out))


def _mine(arguments: argparse.Namespace) -> None:
    try:
        from tellapart_training.bags import MineOptions, mine_training_bags
    except ModuleNotFoundError as error:
        if error.name in _NEEDED:
            raise MissingExtraError("train", f"mining needs {error.name}, which is not installed") from error
        raise
    options = MineOptions(
        images=arguments.images, captions=arguments.captions, splits=tuple(arguments.split),
        scorer=arguments.scorer,
        sizes=tuple(arguments.sizes), bands=tuple(arguments.bands), out=arguments.out, seed=arguments.seed,
        near_duplicate=arguments.near_duplicate, index=arguments.index, cache=arguments.cache,
        tuning_images=arguments.tuning_images, data_seed=arguments.data_seed,
    )  # fmt: skip
    print(json.dumps(mine_training_bags(options)))


def _boost(arguments: argparse.Namespace) -> int:
    from tellapart_training.boost.runner import boost, summary

    report = boost(boost_options.options_of(arguments))
    print(json.dumps(report) if arguments.json else summary(report))
    return 0


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
        "reinforce: captioner on a reward of its own captions; grammar: judge of sound text",
    )
    train.add_argument("--config", type=Path, required=True, help="TOML file, see training/configs")
    train.add_argument("--resume", action="store_true", help="go on from the newest state of the run folder")
    train.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="NAME=VALUE",
        help="override one key, for example optimizer.lr=0.001; may be repeated",
    )  # fmt: skip
    mine = verbs.add_parser("mine-bags", help="mine bags of look-alike images to train on")
    mine.add_argument("--images", type=Path, required=True, help="folder or uncompressed .tar")
    mine.add_argument("--captions", type=Path, help="captions file; left out, likeness is by sight alone")
    mine.add_argument(
        "--split", nargs="+", default=["train"], help='splits of the captions file ("" takes all)'
    )
    mine.add_argument(
        "--tuning-images", type=int, default=0, metavar="N",
        help="leave out the N images that training holds back; give the config's data.tuning_images",
    )  # fmt: skip
    mine.add_argument("--data-seed", type=int, default=0, help="the config's data.seed, which draws them")
    mine.add_argument("--scorer", type=Path, required=True, help="retriever: checkpoint or device bundle")
    mine.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 5, 7, 10, 15, 20])
    mine.add_argument("--bands", nargs="+", default=["hard"], help="of hard, medium, easy")
    mine.add_argument("--out", type=Path, required=True, help="JSON file to write")
    mine.add_argument("--seed", type=int, default=0)
    mine.add_argument(
        "--near-duplicate", type=float, default=0.97, help="cosine above which one of two photos stays out"
    )
    mine.add_argument("--index", default="auto", help="auto, exact or faiss")
    mine.add_argument("--cache", type=Path, default=Path("runs/cache"), help="decoded pixels, embeddings")
    average = verbs.add_parser("average", help="the mean of checkpoints, for runs from one start")
    average.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    average.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    boosted = verbs.add_parser(
        "boost",
        help="merge the human captions of each image into a richer one",
        description="Merges the human captions of each image into richer ones that say nothing that nobody "
        "wrote. The default needs no language model and no network.",
    )
    boost_options.add_arguments(boosted)
    evaluate = verbs.add_parser("evaluate", help="captions and retrieval of a model on a split")
    evaluate_options.add_arguments(evaluate)
    return parser


if __name__ == "__main__":
    sys.exit(main())
