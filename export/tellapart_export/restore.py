"""A bundle of the compact pair becomes a checkpoint again: training goes on where only a bundle is left.

    python -m tellapart_export.restore BUNDLE --out CHECKPOINT --config CONFIG_JSON

Weights stored in 8 bits come back as the numbers they stand for; storing them in 8 bits again loses nothing
more. The temperature of the contrastive loss is in no graph and starts anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from tellapart.bundle import open_bundle
from tellapart.errors import CheckpointError, TellapartError
from tellapart_model.checkpoint import save_checkpoint
from tellapart_model.compact import CompactPair
from tellapart_model.config import load_config

Array = npt.NDArray[Any]
_ZERO_POINT = 128


def restore_checkpoint(bundle: Path, out: Path, *, config: Path) -> None:
    """Write the checkpoint that a bundle was made from, as far as the bundle still knows it.

    Args:
        bundle: ONNX bundle of the compact pair, float or INT8 (schemes `universal`, `vnni` and `weights`).
        out: checkpoint folder to write.
        config: its architecture: a config.json.

    Raises:
        BundleError: the bundle is damaged or has no such graphs.
        CheckpointError: a weight of the architecture is in none of its graphs, or has another shape.
    """
    architecture = load_config(config)
    found: dict[str, Array] = {}
    with open_bundle(bundle) as opened:
        for role in ("vision", "decoder", "text"):
            graph = onnx.load_model_from_string(opened.read_bytes(opened.graph(role).file))
            found.update(_weights(graph))
        vocabulary = opened.read_bytes(opened.manifest.vocabulary.file).decode("utf-8").splitlines()
    network = CompactPair(architecture)
    state = network.state_dict()
    for name, tensor in state.items():
        if name == "log_scale" or name.endswith("num_batches_tracked"):
            continue
        value = found.get(name)
        if value is None or value.shape != tuple(tensor.shape):
            has = "is in no graph" if value is None else f"has shape {value.shape}, not {tuple(tensor.shape)}"
            raise CheckpointError(
                f"{bundle}: {name} {has}: give the config.json that this bundle was made with"
            )
        state[name] = torch.from_numpy(np.array(value, dtype=np.float32))
    network.load_state_dict(state)
    save_checkpoint(out, network, vocabulary=vocabulary, extra={"stage": "restored"})


def _weights(model: Any) -> dict[str, Array]:
    """Every weight of a graph by its name in the network."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {_own(name): value for name, value in stored.items()}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            table, scales = makers[node.input[1]].input[0], node.input[2]  # behind a Reshape into blocks
            name = table.split("::")[0]
            name = name if name.endswith(".weight") else _bias_after(node, readers)
            found.update(_named(name, _rows(stored[table], stored[scales])))
        elif node.op_type == "GatherBlockQuantized":
            table, scales = node.input[0], node.input[2]
            found.update(_named(table.split("::")[0], _rows(stored[table], stored[scales])))
        elif node.op_type == "MatMul" and node.input[1] in stored:
            found.update(_named(_bias_after(node, readers), stored[node.input[1]].T))
        elif node.op_type == "Conv":
            found.update(_convolution(node, stored, makers))
    return found


def _own(name: str) -> str:
    return name.removeprefix("pair.")


def _rows(levels: Array, scales: Array) -> Array:
    """What bytes (n, k) with a scale for each block, (n, k / block), stand for: (n, k) float32."""
    blocks = levels.astype(np.float32).reshape(*scales.shape, -1) - _ZERO_POINT
    return np.asarray((blocks * scales[..., None]).reshape(levels.shape))


def _bias_after(node: Any, readers: dict[str, list[Any]]) -> str:
    """Name of the bias that is added to a product, or nothing."""
    for reader in readers.get(node.output[0], ()):
        for name in reader.input:
            if reader.op_type == "Add" and name.endswith(".bias"):
                return str(name)
    return ""


def _named(name: str, rows: Array) -> dict[str, Array]:
    """The matrix of a product, by the name of itself or of its bias."""
    return {_own(name).removesuffix("bias").removesuffix("weight") + "weight": rows} if name else {}


def _convolution(node: Any, stored: dict[str, Array], makers: dict[str, Any]) -> dict[str, Array]:
    """A convolution that took its batch norm in: the norm becomes the shift alone."""
    weight, bias = (_constant(name, stored, makers) for name in node.input[1:3])
    name = _own(_root(node.input[1], makers)).removesuffix("_quantized").removesuffix("0.weight")
    ones = np.ones_like(bias)
    return {
        f"{name}0.weight": weight, f"{name}1.weight": ones * np.sqrt(1 + _EPSILON), f"{name}1.bias": bias,
        f"{name}1.running_mean": ones * 0, f"{name}1.running_var": ones,
    }  # fmt: skip


_EPSILON = 1e-3
"""Of the trunk's batch norms."""


def _root(name: str, makers: dict[str, Any]) -> str:
    return str(makers[name].input[0]) if name in makers else name


def _constant(name: str, stored: dict[str, Array], makers: dict[str, Any]) -> Array:
    if name in stored:
        return stored[name]
    levels, scale, zero = (stored[part] for part in makers[name].input)  # of a DequantizeLinear, axis 0
    shape = (-1,) + (1,) * (levels.ndim - 1)
    wide = levels.astype(np.float32) - zero.astype(np.float32).reshape(shape)
    return np.asarray(wide * scale.reshape(shape))


def main(argv: Sequence[str] | None = None) -> int:
    """Command; 0 done, 1 refused."""
    parser = argparse.ArgumentParser(prog="python -m tellapart_export.restore", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--config", type=Path, required=True, help="config.json of the architecture")
    arguments = parser.parse_args(argv)
    try:
        restore_checkpoint(arguments.bundle, arguments.out, config=arguments.config)
    except TellapartError as error:
        print(f"restore: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
