"""Matrix products in 8 bits whose activations get their scale while they run: for vision transformers.

An image has hundreds of rows in every product, so what counts is how quickly they are multiplied, not how
many bytes of weights are read. Whole products in integers (onnxruntime's MatMulInteger) are then three
times as quick as block-wise weights: ViT-B/16 on two cores with VNNI and AMX 124 to 49 ms, its keys and
values 5.6 % off instead of 4.0 %. For a decoder, which multiplies one row, there is nothing in it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx

from tellapart_quantization.surgery import name_nodes
from tellapart_quantization.weights_onnx import quantize_weights


def quantize_products(model: Any, *, reduce_range: bool = False) -> Any:
    """A graph whose products with constant matrices are done in 8 bits; inputs, outputs and names as before.

    Weights have a scale for each column, activations one for each product and image.

    Args:
        model: the float graph, its nodes named; not changed.
        reduce_range: weights have seven bits, see `TrunkForm`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        # The library reads and writes files: a graph above 2 GB would not fit into one message.
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(model, source)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load_model(target)


def store_seven_bits(model: Any) -> Any:
    """A graph for processors without 8-bit dot products: products in 8 bits with weights of seven.

    onnxruntime's own block-wise product would store less, but takes its weights as unsigned bytes round 128,
    whose sums of pairs overflow 16 bits whatever the range. Word tables that are looked up alone become
    blocks of 8 bits, as nothing is multiplied there; one that is the output layer too stays float.

    Args:
        model: the float graph, its nodes named; not changed.
    """
    small = quantize_products(model, reduce_range=True)
    name_nodes(small)
    readers: dict[str, list[Any]] = {}
    for node in small.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    alone = {
        node.name
        for node in small.graph.node
        if node.op_type == "Gather" and all(other.op_type == "Gather" for other in readers[node.input[0]])
    }
    return quantize_weights(small, only=alone)
