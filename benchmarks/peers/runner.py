"""One captioner in a process of its own, for the comparison with peers: paths in, times and tokens out.

    python benchmarks/peers/runner.py PEER FOLDER     # FOLDER as make_models.py wrote it

A line of JSON on stdout when it is ready, then one for each path on stdin: `preprocess_ms`, `caption_ms`
(pixels to tokens), `tokens`, `peak_rss_mib`. It asks for exactly 20 tokens, greedily, in batches of one, on
two threads. Runs in the environment of its peer: nothing of tellapart is imported for the others.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

TOKENS = 20
THREADS = 2
Answer = tuple[float, float, list[int]]

ROOTS = {
    "tellapart": ["numpy", "onnxruntime", "pillow"],
    "eager": ["torch", "transformers", "pillow"],
    "optimum": ["optimum-onnx", "onnxruntime", "torch", "transformers", "pillow"],
    "openvino": ["optimum-intel", "openvino", "nncf", "torch", "transformers", "pillow"],
}
"""What a peer needs installed besides itself; nncf only to make the 8-bit weights."""


def tellapart_runner(folder: Path, bundle: str, *, spin: bool) -> Callable[[str], Answer]:
    """Ours."""
    from tellapart import Captioner, DecodeOptions, RuntimeOptions

    captioner = Captioner.open(folder / bundle, runtime=RuntimeOptions(threads="auto", spin=spin))
    options = DecodeOptions(
        beams=1, rerank=0.0, max_new_tokens=TOKENS, min_new_tokens=TOKENS, confidence=False
    )

    def run(path: str) -> Answer:
        caption = captioner.caption(path, options=options)
        spent = caption.elapsed_ms
        # "load" is part of the first caption, as it is of the first caption of the others.
        return spent["preprocess"], spent["vision"] + spent["decode"], list(caption.token_ids)

    return run


def generating(model: Any, processor: Any) -> Callable[[str], Answer]:
    """A model with `generate`."""
    import torch
    from PIL import Image

    def run(path: str) -> Answer:
        started_s = time.perf_counter()
        with Image.open(path) as image:
            pixels = processor(images=image.convert("RGB"), return_tensors="pt").pixel_values
        middle_s = time.perf_counter()
        with torch.inference_mode():
            found = model.generate(
                pixels, max_new_tokens=TOKENS, min_new_tokens=TOKENS, num_beams=1, do_sample=False
            )
        ended_s = time.perf_counter()
        return (middle_s - started_s) * 1e3, (ended_s - middle_s) * 1e3, found[0, 1:].tolist()

    return run


def transformers_runner(folder: Path, peer: str) -> Callable[[str], Answer]:
    """The others, with the same weights; what has to be converted first lies beside them."""
    import torch

    torch.set_num_threads(THREADS)
    from transformers import ViTImageProcessor

    checkpoint = folder / "checkpoint"
    processor = ViTImageProcessor.from_pretrained(checkpoint)
    if peer == "eager":
        from transformers import VisionEncoderDecoderModel

        model: Any = VisionEncoderDecoderModel.from_pretrained(checkpoint).eval()
    elif peer.startswith("optimum"):
        import onnxruntime
        from optimum.onnxruntime import ORTModelForVision2Seq

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        if peer.endswith("no-spin"):
            options.add_session_config_entry("session.force_spinning_stop", "1")
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = ORTModelForVision2Seq.from_pretrained(folder / "optimum-int8", session_options=options)
    else:
        from optimum.intel import OVModelForVision2Seq

        config = {
            "INFERENCE_NUM_THREADS": str(THREADS),
            "SNIPPETS_MODE": "DISABLE",
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = OVModelForVision2Seq.from_pretrained(folder / "openvino-int8", ov_config=config)
        # 1.27.0 expects cross keys and values among the cache of a decoder that has none, and fails from the
        # third token: two tensors a layer is what the graph has.
        for decoder in (model.decoder, model.decoder_with_past):
            if decoder is not None:
                decoder.use_past, decoder.num_pkv = False, 2
    model.generation_config.eos_token_id = None  # exactly so many tokens
    model.generation_config.max_length = None
    return generating(model, processor)


def convert(folder: Path, peer: str) -> None:
    """Write what a peer loads."""
    checkpoint = str(folder / "checkpoint")
    if peer.startswith("optimum"):
        from optimum.onnxruntime import ORTModelForVision2Seq, ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        plain, small = folder / "optimum-fp32", folder / "optimum-int8"
        if not plain.exists():
            ORTModelForVision2Seq.from_pretrained(checkpoint, export=True).save_pretrained(plain)
        recipe = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        for graph in sorted(plain.glob("*.onnx")):
            if not (small / graph.name).exists():
                quantizer = ORTQuantizer.from_pretrained(plain, file_name=graph.name)
                quantizer.quantize(recipe, save_dir=small, file_suffix="")
    elif peer.startswith("openvino"):
        from optimum.intel import OVModelForVision2Seq, OVWeightQuantizationConfig

        small = folder / "openvino-int8"
        if not small.exists():
            recipe = OVWeightQuantizationConfig(bits=8, sym=False)
            model = OVModelForVision2Seq.from_pretrained(checkpoint, export=True, quantization_config=recipe)
            model.save_pretrained(small)


def peak_rss_mib() -> float:
    """The kernel's high-water mark."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def installed_mib(roots: list[str]) -> float:
    """Bytes of some distributions and of all that they need, as installed here."""
    waiting, found = list(roots), set()
    total = 0
    while waiting:
        name = waiting.pop().lower().replace("_", "-").replace(".", "-")
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting.extend(needed(distribution))
        for file in distribution.files or []:
            place = Path(str(file.locate()))
            total += place.stat().st_size if place.is_file() else 0
    return total / 2**20


def needed(distribution: metadata.Distribution) -> Iterator[str]:
    """Names that a distribution requires without any extra."""
    for line in distribution.requires or []:
        text, _, marker = line.partition(";")
        if "extra" in marker:
            continue
        name = ""
        for letter in text.strip():
            if not (letter.isalnum() or letter in "-_."):
                break
            name += letter
        yield name


def versions(names: list[str]) -> dict[str, str]:
    """Installed versions."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Answer until stdin ends."""
    peer, folder = sys.argv[1], Path(sys.argv[2])
    if sys.argv[3:] == ["--convert"]:
        convert(folder, peer)
        return 0
    kind = peer.split("-")[0]
    if kind == "tellapart":
        bundle = "fp32" if "fp32" in peer else "int8"
        run = tellapart_runner(folder, bundle, spin="spin" in peer)
    else:
        run = transformers_runner(folder, peer)
    ready = {"ready": True, "versions": versions(ROOTS[kind])}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        if line.strip() == "installed":
            print(json.dumps({"installed_mib": installed_mib(ROOTS[kind])}), flush=True)
            continue
        preprocess_ms, caption_ms, tokens = run(line.strip())
        record = {"preprocess_ms": preprocess_ms, "caption_ms": caption_ms, "tokens": tokens}
        print(json.dumps({**record, "peak_rss_mib": peak_rss_mib()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
