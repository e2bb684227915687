"""Our graphs against those of optimum's exporter: same weights, same runtime, same decoding loop.

    python benchmarks/peers/same_loop.py build/peers/vit-gpt2 --photos samples/photos

`make bench-peers` compares whole captioners, their loops included. Here both sides run in one process by
onnxruntime with the same session options, greedily, the same number of tokens, photo by photo in turns, so
what differs is the graphs alone. The folder is as `make_models.py` and `runner.py --convert` leave it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tellapart.image import load_image
from tellapart.manifest import parse_manifest
from tellapart.preprocess import to_input

TOKENS = 20
PAIRS = {"fp32": ("fp32", "optimum-fp32"), "int8": ("int8", "optimum-int8")}

Caption = Callable[[Any], list[int]]


def open_graph(file: Path, threads: int) -> Any:
    """A session with the options that both sides get."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def ours(folder: Path, start: int, threads: int) -> Caption:
    """Keys and values of the image once, then one token a step."""
    vision, decoder = (open_graph(folder / f"{name}.onnx", threads) for name in ("vision", "decoder"))
    shape = next(item.shape for item in decoder.get_inputs() if item.name == "past_kv")

    def caption(pixels: Any) -> list[int]:
        [cross] = vision.run(["cross_kv"], {"pixels": pixels[None]})
        past = np.zeros((shape[0], 1, shape[2], 0, shape[4]), np.float32)
        said = [start]
        for _ in range(TOKENS):
            feeds = {"ids": np.array([said[-1:]]), "past_kv": past, "cross_kv": cross}
            logits, past = decoder.run(["logits", "present_kv"], feeds)
            said.append(int(logits[0].argmax()))
        return said[1:]

    return caption


def optimum(folder: Path, start: int, threads: int) -> Caption:
    """States of the image once, handed to the decoder at each step; the first step has a graph of its own."""
    encoder = open_graph(folder / "encoder_model.onnx", threads)
    first = open_graph(folder / "decoder_model.onnx", threads)
    later = open_graph(folder / "decoder_with_past_model.onnx", threads)
    outputs = ["logits", *(item.name for item in first.get_outputs() if item.name.startswith("present"))]
    wanted = {item.name for item in later.get_inputs()}

    def caption(pixels: Any) -> list[int]:
        scaled = (pixels[None].transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.5
        [states] = encoder.run(["last_hidden_state"], {"pixel_values": scaled})
        feeds: dict[str, Any] = {"input_ids": np.array([[start]]), "encoder_hidden_states": states}
        decoder, said = first, []
        for _ in range(TOKENS):
            logits, *grown = decoder.run(outputs, feeds)
            said.append(int(logits[0, -1].argmax()))
            names = (name.replace("present", "past_key_values") for name in outputs[1:])
            feeds = dict(zip(names, grown, strict=True))
            feeds |= {"input_ids": np.array([said[-1:]]), "encoder_hidden_states": states}
            feeds = {name: array for name, array in feeds.items() if name in wanted}
            decoder = later
        return said

    return caption


def graph_mib(folder: Path, names: tuple[str, ...]) -> float:
    """Size of the graphs that a side runs, their outside numbers included."""
    return sum(file.stat().st_size for name in names for file in folder.glob(f"{name}*")) / 2**20


def compare(
    folder: Path, pair: str, photos: list[Any], *, start: int, threads: int, rounds: int
) -> dict[str, Any]:
    """Median milliseconds of both sides and the median of the quotients of one turn."""
    left, right = (folder / name for name in PAIRS[pair])
    sides = [ours(left, start, threads), optimum(right, start, threads)]
    spent: list[list[float]] = [[], []]
    equal = 0
    for index in range(rounds + 1):
        said = []
        for place in (0, 1) if index % 2 else (1, 0):
            started_s = time.perf_counter()
            said.append(sides[place](photos[index % len(photos)]))
            if index:
                spent[place].append(1e3 * (time.perf_counter() - started_s))
        equal += bool(index) and said[0] == said[1]
    return {
        "pair": pair,
        "ours_ms": round(statistics.median(spent[0]), 1),
        "optimum_ms": round(statistics.median(spent[1]), 1),
        "times_faster": round(statistics.median(b / a for a, b in zip(*spent, strict=True)), 2),
        "captions_equal": f"{equal} of {rounds}",
        "ours_mib": round(graph_mib(left, ("vision.onnx", "decoder.onnx")), 1),
        # Without the first step's graph, which holds the same weights again.
        "optimum_mib": round(graph_mib(right, ("encoder_model.onnx", "decoder_with_past_model.onnx")), 1),
    }


def main() -> int:
    """Print one line of JSON for each precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--pair", choices=PAIRS, nargs="+", default=list(PAIRS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    manifest = parse_manifest((args.folder / "fp32" / "tellapart.json").read_bytes())
    start = json.loads((args.folder / "checkpoint" / "config.json").read_bytes())["decoder_start_token_id"]
    files = sorted(path for path in args.photos.iterdir() if path.suffix == ".jpg")
    photos = [to_input(load_image(path), manifest.preprocessing) for path in files]
    for pair in args.pair:
        found = compare(args.folder, pair, photos, start=start, threads=args.threads, rounds=args.rounds)
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
