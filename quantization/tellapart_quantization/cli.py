"""`tellapart quantize`: flags -> quantize_bundle."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="tellapart quantize", description="Make an INT8 bundle and judge it against the float one."
    )
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="float bundle that `tellapart export` made"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder or .zip to make")
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR|TAR", help="photos to calibrate and to compare on"
    )
    parser.add_argument(
        "--scheme",
        default="vnni",
        help="vnni: 8-bit trunk and weights; portable: for processors without 8-bit dot products; "
        "universal: for both, as vnni with a trunk that cannot overflow; "
        "weights: only these; dynamic: for vision transformers; openvino: as vnni, for that runtime; "
        "tensorrt: explicit and symmetric; coreml: packages with 8-bit weights; "
        "coreml-activations: their vision computes in 8 bits, too; auto: tries what runs here and keeps"
        " the fastest within the budget (default vnni)",
    )
    parser.add_argument(
        "--keep-float",
        nargs="*",
        metavar="BLOCK",
        help="trunk blocks to leave in float instead of the scheme's own (stem, blocks.0, ..., head; "
        "none named: all in 8 bits), or auto to find out which are worth it",
    )
    parser.add_argument("--auto-blocks", type=int, default=3, metavar="N", help="most blocks that auto keeps")
    parser.add_argument(
        "--calibration-limit", type=int, metavar="N", help="photos to calibrate on (default: the scheme's)"
    )
    parser.add_argument("--check-images", type=int, default=200, metavar="N", help="photos to compare on")
    parser.add_argument(
        "--captions", type=Path, metavar="FILE", help="JSON lines; with them retrieval is compared"
    )
    parser.add_argument("--split", metavar="NAME", help="compare on this split, calibrate on the others")
    parser.add_argument(
        "--benchmark",
        type=Path,
        metavar="DIR",
        help="bags of look-alikes; with them the captions of both bundles are compared by self-retrieval",
    )
    parser.add_argument(
        "--benchmark-images", type=Path, metavar="DIR|TAR", help="its photos, where they lie elsewhere"
    )
    parser.add_argument("--limit-bags", type=int, metavar="N", help="first N bags of a size; a quick look")
    parser.add_argument(
        "--scorer", type=Path, metavar="BUNDLE", help="retriever that judges both (default: the float bundle)"
    )
    parser.add_argument("--min-agreement", type=float, default=0.9, metavar="X", help="least token agreement")
    parser.add_argument(
        "--max-recall-drop",
        type=float,
        default=0.5,
        metavar="X",
        help="most points of recall lost: R@10 of human captions, and R@1 on bags, the mean over their sizes",
    )
    parser.add_argument(
        "--max-cider-drop",
        type=float,
        metavar="X",
        help="most CIDEr-D lost by greedy captions, for example 0.005; needs --captions",
    )
    parser.add_argument("--max-mib", type=float, metavar="X", help="largest bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; errors travel up to `tellapart.cli`, which gives them a sentence and a status."""
    args = build_parser().parse_args(argv)
    from tellapart_quantization.build import QuantizeOptions, quantize_bundle
    from tellapart_quantization.report import Budget

    options = QuantizeOptions(
        images=args.images,
        scheme=args.scheme,
        keep_float=None if args.keep_float is None else tuple(args.keep_float),
        auto_blocks=args.auto_blocks,
        calibration_limit=args.calibration_limit,
        check_images=args.check_images,
        captions=args.captions,
        split=args.split,
        benchmark=args.benchmark,
        benchmark_images=args.benchmark_images,
        limit_bags=args.limit_bags,
        scorer=args.scorer,
        budget=Budget(
            min_agreement=args.min_agreement,
            max_recall_drop=args.max_recall_drop,
            max_cider_drop=args.max_cider_drop,
            max_mib=args.max_mib,
        ),
        overwrite=args.overwrite,
    )
    manifest = quantize_bundle(
        args.bundle, args.out, options, say=lambda line: print(f"quantize: {line}", file=sys.stderr)
    )
    mib = sum(entry.bytes for entry in manifest.files.values()) / 2**20
    print(json.dumps({"bundle": str(args.out), "size_mib": round(mib, 2), "scheme": manifest.scheme,
                      "metrics": manifest.metrics["quantization"]}, indent=1))  # fmt: skip
    return 0
