"""How a bundle can be made small: the named schemes."""

from __future__ import annotations

import dataclasses

from tellapart_quantization.int8_onnx import PLAIN, TrunkForm


@dataclasses.dataclass(frozen=True)
class QuantScheme:
    """How the parts of a bundle are made small."""

    name: str
    trunk: bool
    """The vision trunk computes in 8 bits; otherwise it stays float."""
    percentile: float = 99.999
    """Share of a tensor's values inside its range, percent; see `Histogram.percentile_range`."""
    dynamic: bool = False
    """All products of the vision graph are in 8 bits, their scales found while it runs."""
    activations: bool = False
    """All convolutions, products, pools and sums of the vision package for Core ML are in 8 bits."""
    float_blocks: tuple[str, ...] = ()
    """Blocks of the trunk that stay in float unless the caller says otherwise."""
    target: str = "onnx"
    """What the graphs are for."""
    photos: int = 128
    """Most photos to calibrate on unless the caller says otherwise."""
    form: TrunkForm = PLAIN
    """How the trunk's numbers are rounded."""
    seven_bits: bool = False
    """Matrix products, too, are in 8 bits with weights of seven; otherwise their weights are stored in 8."""
    device: str = ""
    """What was not proved and why, where the scheme is for hardware that did not take part."""
    device_command: str = ""
    """What proves it there."""


SCHEMES = {
    # The first three blocks hold 1 % of the weights and a third of the error: with Lite0's ImageNet weights,
    # on 32 Flickr8k photos, the features are 16.1 % off with all blocks in 8 bits and 10.5 % so, at no size.
    "vnni": QuantScheme("vnni", trunk=True, float_blocks=("stem", "blocks.0", "blocks.1")),
    "weights": QuantScheme("weights", trunk=False),
    "dynamic": QuantScheme("dynamic", trunk=False, dynamic=True),
    # With the embedded pair, 300 photos: 98.3 % of next tokens stay the same as for "vnni", 98.6 % with four
    # times the photos, 98.9 % with two more blocks in float, at 0.02 MiB.
    "openvino": QuantScheme(
        "openvino",
        trunk=True,
        float_blocks=("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"),
        target="openvino",
        photos=512,
    ),
    # Without 8-bit dot products x86 adds pairs of products in 16 bits, which overflow: 2 * 255 * 127. With
    # weights of seven bits they cannot: 2 * 255 * 64 = 32640.
    "portable": QuantScheme(
        "portable",
        trunk=True,
        float_blocks=("stem", "blocks.0", "blocks.1"),
        form=TrunkForm(reduce_range=True),
        seven_bits=True,
    ),
    # The trunk's weights alone have seven bits: nothing overflows, so captions are the same with and without
    # 8-bit dot products.
    "universal": QuantScheme(
        "universal",
        trunk=True,
        float_blocks=("stem", "blocks.0", "blocks.1"),
        form=TrunkForm(reduce_range=True),
    ),
    # TensorRT takes zero points of 0 alone, no operator of onnxruntime's own, and no Clip between.
    "tensorrt": QuantScheme(
        "tensorrt",
        trunk=True,
        float_blocks=("stem", "blocks.0", "blocks.1"),
        form=TrunkForm(symmetric=True),
        device="unproved on device: TensorRT was not here; the same graphs were run by onnxruntime",
        device_command="tellapart bench --model BUNDLE --provider TensorrtExecutionProvider --against FLOAT",
    ),
    "coreml": QuantScheme(
        "coreml",
        trunk=False,
        target="coreml",
        device="unproved on device: no Apple device took part; its operations were run by onnxruntime",
        device_command="python -m tellapart_coreml BUNDLE",
    ),
    "coreml-activations": QuantScheme(
        "coreml-activations",
        trunk=False,
        activations=True,
        # Every tensor has one scale and no zero point. With the embedded pair, on 40 photos of `val`, rows of
        # pictures keep a cosine of 0.936 with all blocks in 8 bits, 0.984 without the stem, 0.993 and 0.996
        # without the next two; two more add less than 0.001.
        float_blocks=("stem", "blocks.0", "blocks.1"),
        target="coreml",
        device="unproved on device: no Apple device took part; its operations were run by onnxruntime",
        device_command="python -m tellapart_coreml BUNDLE",
    ),
}
"""Presets: "vnni" is for x86 and ARM with 8-bit dot products, "portable" for processors without them,
"universal" for a bundle that goes to both,
"weights" keeps every activation in float, "dynamic" is for vision transformers on the processors of "vnni",
"openvino" is for that runtime, by NNCF, "tensorrt" is explicit and symmetric (QDQ), "coreml" stores the
weights of packages in 8 bits, "coreml-activations" computes their vision in them as well. A vision graph
without a trunk of convolutions (the towers of CLIP, BLIP and their kin) has its weights alone in 8 bits in
any but "dynamic" and "coreml-activations"."""

AUTO = "auto"
"""Not a scheme: those that can run here are tried, and the fastest within the budget is kept."""
