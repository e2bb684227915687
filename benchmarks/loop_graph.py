"""The whole greedy search as one ONNX graph, against the SDK's loop around one step: what would it save?

    python benchmarks/loop_graph.py --images ../shared/data/flickr8k/images.tar --photos 24

The decoder's graph becomes the body of a `Loop`: the newest token and the growing keys and values are what it
carries, the argmax and the logarithm of the softmax are in the graph, and the end mark ends it. Both take
turns, photo by photo, on one thread; times are of decoding alone, in processor time, which waiting does not
count in. Not shipped, see docs/runtime.md. Runs where the training package is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tellapart import Captioner, DecodeOptions, RuntimeOptions
from tellapart.backends.ort import session_options
from tellapart.decode import Rules, greedy
from tellapart.kv_cache import KVCache
from tellapart.plan import make_plan
from tellapart.types import FloatArray
from tellapart_training.images import ImageSource

Answer = tuple[tuple[int, ...], tuple[float, ...]]


def loop_model(step: onnx.ModelProto, rules: Rules) -> onnx.ModelProto:
    """Wrap a decoder step: cross_kv of one image in, tokens and their log-probabilities out."""
    graph = step.graph
    inputs = {value.name: value for value in graph.input}
    outputs = {value.name: value for value in graph.output}
    size = outputs["logits"].type.tensor_type.shape.dim[-1].dim_value
    layers, _, heads, _, width = (dim.dim_value for dim in inputs["past_kv"].type.tensor_type.shape.dim)
    banned = np.zeros((1, size), np.float32)
    banned[0, list(rules.banned_ids)] = -np.inf
    nodes = [
        helper.make_node("Add", ["logits", "own:banned"], ["own:allowed"]),
        helper.make_node("ArgMax", ["own:allowed"], ["own:next"], axis=1, keepdims=1),
        helper.make_node("Squeeze", ["own:next"], ["own:token"]),
        helper.make_node("Equal", ["own:token", "own:end"], ["own:ended"]),
        helper.make_node("Not", ["own:ended"], ["own:going"]),
        helper.make_node("LogSoftmax", ["logits"], ["own:logprobs"], axis=1),
        helper.make_node("GatherElements", ["own:logprobs", "own:next"], ["own:picked"], axis=1),
        helper.make_node("Squeeze", ["own:picked"], ["own:logprob"]),
    ]
    body = helper.make_graph(
        [*graph.node, *nodes],
        "step",
        [
            helper.make_tensor_value_info("own:turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("own:was_going", TensorProto.BOOL, []),
            inputs["ids"],
            inputs["past_kv"],
        ],
        [
            helper.make_tensor_value_info("own:going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("own:next", TensorProto.INT64, [1, 1]),
            outputs["present_kv"],
            helper.make_tensor_value_info("own:token", TensorProto.INT64, []),
            helper.make_tensor_value_info("own:logprob", TensorProto.FLOAT, []),
        ],
        [
            *graph.initializer,
            numpy_helper.from_array(banned, "own:banned"),
            numpy_helper.from_array(np.array(rules.end_id), "own:end"),
        ],
    )
    whole = helper.make_graph(
        [
            helper.make_node(
                "Loop",
                ["most", "go", "start", "nothing"],
                ["last", "kept", "tokens", "logprobs"],
                body=body,
            )
        ],
        "caption",
        [inputs["cross_kv"]],
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["pieces"]),
            helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["pieces"]),
        ],
        [
            numpy_helper.from_array(np.array(rules.max_new_tokens + 1), "most"),
            numpy_helper.from_array(np.array(True), "go"),
            numpy_helper.from_array(np.array([[rules.start_id]]), "start"),
            numpy_helper.from_array(np.zeros((layers, 1, heads, 0, width), np.float32), "nothing"),
        ],
    )
    model = helper.make_model(whole, opset_imports=list(step.opset_import))
    model.ir_version = step.ir_version
    return model


def measure(
    ways: dict[str, Callable[[FloatArray], Answer]], photos: list[FloatArray], rounds: int
) -> dict[str, list[float]]:
    """Per way and photo the median milliseconds of processor time, the ways in turns."""
    spent: dict[str, list[list[float]]] = {name: [[] for _ in photos] for name in ways}
    for _ in range(rounds):
        for place, cross_kv in enumerate(photos):
            for name, decode in ways.items():
                started_s = time.process_time()
                decode(cross_kv)
                spent[name][place].append((time.process_time() - started_s) * 1e3)
    return {name: [statistics.median(each) for each in times] for name, times in spent.items()}


def main() -> int:
    """Compare tokens, then times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    runtime = RuntimeOptions(threads=1)
    source = ImageSource(args.images)
    with Captioner.open(args.model, runtime=runtime) as captioner:
        engine, bundle = captioner._engine, captioner.bundle
        rules = make_plan(DecodeOptions(beams=1), bundle.manifest.decoding, engine.tokenizer).rules
        step = engine.decoder().step
        model = loop_model(onnx.load(str(bundle.root / bundle.graph("decoder", "onnx").file)), rules)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(),
            sess_options=session_options("decoder", 1, runtime),
            providers=["CPUExecutionProvider"],
        )

        def by_sdk(cross_kv: FloatArray) -> Answer:
            [found] = greedy(step, KVCache.empty(cross_kv), rules=rules)
            return found.ids, found.logprobs

        def by_graph(cross_kv: FloatArray) -> Answer:
            tokens, logprobs = session.run(None, {"cross_kv": cross_kv})
            ids = tuple(int(token) for token in tokens[: rules.max_new_tokens] if token != rules.end_id)
            return ids, tuple(logprobs.tolist())

        photos = [captioner.look(source.read(name)).cross_kv for name in source.names()[: args.photos]]
        pairs = [(by_sdk(cross_kv), by_graph(cross_kv)) for cross_kv in photos]
        same = sum(sdk[0] == graph[0] for sdk, graph in pairs)
        print(f"the same tokens for {same} of {len(photos)} photos")
        times = measure({"sdk": by_sdk, "loop": by_graph}, photos, args.rounds)
    ratio = statistics.median(loop / sdk for sdk, loop in zip(times["sdk"], times["loop"], strict=True))
    for name, each in times.items():
        print(f"{name:<6}{statistics.mean(each):>8.2f} ms of decoding a photo")
    print(f"loop / sdk, median over photos: {ratio:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
