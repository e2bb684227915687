"""`tellapart export`: flags -> export_bundle."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="tellapart export", description="Make a device bundle of a checkpoint and prove it equal."
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder that `tellapart train` wrote, or of a Hugging Face model, or its name on the hub",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder or .zip to make")
    parser.add_argument(
        "--target",
        nargs="+",
        default=["onnx"],
        help="formats to write: onnx, openvino, openvino-npu (fixed shapes), coreml (default onnx)",
    )
    parser.add_argument("--name", default="", help="name in the manifest (default: that of the checkpoint)")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR|TAR",
        help="photos on which network and graphs must caption alike, token for token; drawn pictures "
        "without it",
    )
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="most photos (default 200)")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="JSON lines that say who is in --split")
    parser.add_argument("--split", metavar="NAME", help="only photos of this split, for example val")
    parser.add_argument(
        "--beams",
        type=int,
        help="beams of the bundle unless asked otherwise (default: as the checkpoint says)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="likewise; most word pieces of a caption"
    )
    parser.add_argument(
        "--length-penalty",
        type=float,
        metavar="X",
        help="likewise; below 1 favours short captions",
    )
    parser.add_argument(
        "--rerank",
        type=float,
        metavar="X",
        help="likewise; weight of the retriever among the beams",
    )
    parser.add_argument(
        "--prompt",
        default="",
        metavar="TEXT",
        help="what a network that is asked a question (SmolVLM) is asked with every picture",
    )
    parser.add_argument("--card", type=Path, metavar="FILE", help="model card to put into the bundle")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; errors travel up to `tellapart.cli`, which gives them a sentence and a status."""
    args = build_parser().parse_args(argv)
    from tellapart_export.build import ExportOptions, export_bundle

    options = ExportOptions(
        targets=tuple(args.target),
        name=args.name,
        images=args.images,
        captions=args.captions,
        split=args.split,
        limit=args.limit,
        beams=args.beams,
        max_new_tokens=args.max_new_tokens,
        length_penalty=args.length_penalty,
        rerank=args.rerank,
        prompt=args.prompt,
        card=args.card,
        overwrite=args.overwrite,
        progress=True,
    )
    print(f"exporting {args.checkpoint}", file=sys.stderr)
    manifest = export_bundle(args.checkpoint, args.out, options)
    mib = sum(entry.bytes for entry in manifest.files.values()) / 2**20
    print(
        json.dumps({"bundle": str(args.out), "size_mib": round(mib, 2), "parity": manifest.parity}, indent=1)
    )
    return 0
