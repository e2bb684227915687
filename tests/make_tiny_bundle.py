"""Make `tests/data/tiny_bundle`: a captioner and retriever of a few kB, with weights set by hand.

    PYTHONPATH=sdk python tests/make_tiny_bundle.py

Real ONNX graphs that keep the graph interface of real bundles, so that every test of the SDK can walk the
whole way in milliseconds. It sees colours: a 16 x 16 image is cut into 2 x 2 patches, each with its mean
colour, and the decoder says "a red field" or "a blue patchwork on a red field", following a small
grammar. What makes it a fair test subject:

- the caption and both embeddings depend on the image, and a caption's embedding lies near its own image;
- self-attention lowers words that were said before, so a cache that is not reordered changes captions;
- the end mark becomes likelier with every step, so each caption ends by itself;
- "patch" is always followed by "##work", so pieces have to be joined.

Letters: b batch, L = 2 layers, H = 2 heads, N = 4 image tokens, D = 4 width of a head, E = 8 width of an
embedding, W = 16 width of the decoder, F = 5 features of a patch, P past length.
Every weight is rounded to 1/1000, so that the files are the same on every machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tellapart.bundle import staged_bundle, write_bundle

OUT = Path(__file__).parent / "data" / "tiny_bundle"
IMAGE_PX, LAYERS, HEADS, TOKENS, HEAD_WIDTH, EMBEDDING, WIDTH, FEATURES = 16, 2, 2, 4, 4, 8, 16, 5
POSITIONS = 64

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
# Chroma (r, g, b less their mean), brightness, on a scale where pure colours have length about 1.
COLOURS = {
    "red": (1.3, -0.7, -0.7, -0.3),
    "green": (-0.7, 1.3, -0.7, -0.3),
    "blue": (-0.7, -0.7, 1.3, -0.3),
    "yellow": (0.7, 0.7, -1.3, 0.3),
    "purple": (0.7, -1.3, 0.7, 0.3),
    "cyan": (-1.3, 0.7, 0.7, 0.3),
    "white": (0.0, 0.0, 0.0, 1.2),
    "black": (0.0, 0.0, 0.0, -1.2),
    "gray": (0.0, 0.0, 0.0, 0.0),
}
NOUNS = ["field", "wall", "sky"]
STEM, STEM_END = "patch", "##work"
PREPOSITIONS = ["on", "near", "under"]
OTHERS = ["the", "dog", "cat", "two", "##s", "##ing", ".", ",", "'", "-"]
LETTERS = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
VOCABULARY = [*SPECIAL, *LETTERS, *COLOURS, *NOUNS, STEM, STEM_END, *PREPOSITIONS, *OTHERS]
ID = {piece: index for index, piece in enumerate(VOCABULARY)}

# The decoder's width: 6 word classes, then the F features of the image, then 5 numbers that tell words apart.
BEGIN, ARTICLE, COLOUR, NOUN, PREPOSITION, HALF = range(6)
SEEN = slice(6, 6 + FEATURES)
OWN = slice(6 + FEATURES, WIDTH)

CLASS_OF = {
    "[CLS]": BEGIN,
    "a": ARTICLE,
    **dict.fromkeys(COLOURS, COLOUR),
    **dict.fromkeys(NOUNS, NOUN),
    STEM: HALF,
    STEM_END: NOUN,
    **dict.fromkeys(PREPOSITIONS, PREPOSITION),
}


def noise(*shape: int, seed: int) -> NDArray[np.float32]:
    """Numbers in [-1, 1] without a generator, whose stream could change between releases of numpy."""
    steps = np.arange(1, int(np.prod(shape)) + 1, dtype=np.float64)
    return weights(np.sin(steps * (12.9898 + seed) + seed).reshape(shape))


def weights(values: Any) -> NDArray[np.float32]:
    """Rounded to 1/1000, float32."""
    return np.round(np.asarray(values, np.float64), 3).astype(np.float32)


class Graph:
    """Collects nodes and weights of one graph; every method adds a node and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: Any) -> str:
        array = np.asarray(values)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def shape(self, x: str, *sizes: int, out: str = "") -> str:
        return self.op("Reshape", x, self.constant(np.array(sizes, np.int64)), out=out)

    def unit(self, x: str, out: str) -> str:
        """Rows of length 1."""
        return self.op("Div", x, self.op("ReduceL2", x, axes=[1], keepdims=1), out=out)

    def model(self, name: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> bytes:
        infos = [
            [helper.make_tensor_value_info(t["name"], ELEMENT[t["dtype"]], t["shape"]) for t in tensors]
            for tensors in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, name, infos[0], infos[1], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="tiny")
        model.ir_version = 8  # what opset 17 came with; older runtimes refuse what newer `onnx` writes
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)


ELEMENT = {"uint8": TensorProto.UINT8, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}


def tensor(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


CROSS = tensor("cross_kv", "float32", 2 * LAYERS, "batch", HEADS, TOKENS, HEAD_WIDTH)
VECTORS = tensor("embedding", "float32", "batch", EMBEDDING)
GRAPHS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "vision": ([tensor("pixels", "uint8", "batch", IMAGE_PX, IMAGE_PX, 3)], [CROSS, VECTORS]),
    "decoder": (
        [
            tensor("ids", "int64", "batch", 1),
            tensor("past_kv", "float32", 2 * LAYERS, "batch", HEADS, "past", HEAD_WIDTH),
            CROSS,
        ],
        [
            tensor("logits", "float32", "batch", len(VOCABULARY)),
            tensor("present_kv", "float32", 2 * LAYERS, "batch", HEADS, "present", HEAD_WIDTH),
        ],
    ),
    "text": ([tensor("ids", "int64", "batch", "tokens")], [VECTORS]),
}


def vision() -> bytes:
    """Pixels -> features per patch (b, N, F) -> keys and values of each layer, and the embedding."""
    g = Graph()
    half = IMAGE_PX // 2
    scaled = g.op(
        "Div", g.op("Sub", g.op("Cast", "pixels", to=TensorProto.FLOAT), f32(g, 127.0)), f32(g, 128.0)
    )
    patches = g.op("ReduceMean", g.shape(scaled, -1, 2, half, 2, half, 3), axes=[2, 4], keepdims=0)
    colour = g.shape(patches, -1, TOKENS, 3)
    bright = g.op("ReduceMean", colour, axes=[2], keepdims=1)
    chroma = g.op("Sub", colour, bright)
    away = g.op("Abs", g.op("Sub", colour, g.op("ReduceMean", colour, axes=[1], keepdims=1)))
    contrast = g.op("ReduceMax", away, axes=[2], keepdims=1)
    features = g.op("Concat", chroma, bright, contrast, axis=2)  # (b, N, F)

    # Head 0 carries chroma and brightness as values, head 1 contrast; keys are faint, so attention is wide.
    mixing = np.zeros((FEATURES, 2 * LAYERS, HEADS, HEAD_WIDTH))
    mixing[:, 0::2] = 0.2 * noise(FEATURES, LAYERS, HEADS, HEAD_WIDTH, seed=1)
    for layer in range(LAYERS):
        for feature in range(FEATURES):
            mixing[feature, 2 * layer + 1, feature // HEAD_WIDTH, feature % HEAD_WIDTH] = 1.0
    mixed = g.op("MatMul", features, g.constant(weights(mixing.reshape(FEATURES, -1))))
    parts = g.shape(mixed, -1, TOKENS, 2 * LAYERS, HEADS, HEAD_WIDTH)
    g.op("Transpose", parts, perm=[2, 0, 3, 1, 4], out="cross_kv")

    # Means of the features, then how the left differs from the right in colour.
    project = np.zeros((TOKENS, FEATURES, EMBEDDING))
    for feature in range(FEATURES):
        project[:, feature, feature] = 1 / TOKENS
    for channel in range(3):
        project[:, channel, FEATURES + channel] = [0.05, -0.05, 0.05, -0.05]
    flat = g.op(
        "MatMul",
        g.shape(features, -1, TOKENS * FEATURES),
        g.constant(weights(project.reshape(-1, EMBEDDING))),
    )
    g.unit(g.op("Add", flat, g.constant(weights(np.eye(EMBEDDING)[-1] * 0.1))), "embedding")
    return g.model("vision", *GRAPHS["vision"])


def f32(g: Graph, value: float) -> str:
    return g.constant(np.float32(value))


def decoder() -> bytes:
    """One step: class of the last word -> class of the next; the image picks the word, the past lowers it."""
    g = Graph()
    inner = HEADS * HEAD_WIDTH
    hidden = g.op("Gather", g.constant(word_table()), g.shape("ids", -1))  # (b, W)
    past = g.op("Shape", "past_kv", start=3, end=4)  # (1,)
    hidden = g.op("Add", hidden, g.op("Gather", g.constant(position_table()), past))
    caches = []
    for layer in range(LAYERS):
        keys_index, values_index = np.int64(2 * layer), np.int64(2 * layer + 1)
        query = split_heads(g, hidden, 0.3 * noise(WIDTH, inner, seed=10 + layer))
        new_keys = split_heads(g, hidden, 0.3 * noise(WIDTH, inner, seed=20 + layer))
        # Values: the five own numbers of each word, so that the sum knows what was said.
        carry = np.zeros((WIDTH, inner))
        carry[OWN, : OWN.stop - OWN.start] = np.eye(OWN.stop - OWN.start)
        new_values = split_heads(g, hidden, carry)
        keys = g.op("Concat", g.op("Gather", "past_kv", g.constant(keys_index), axis=0), new_keys, axis=2)
        values = g.op(
            "Concat", g.op("Gather", "past_kv", g.constant(values_index), axis=0), new_values, axis=2
        )
        caches += [g.op("Unsqueeze", x, g.constant(np.array([0], np.int64))) for x in (keys, values)]
        said = attend(g, query, keys, values)
        hidden = g.op("Add", hidden, g.op("MatMul", said, g.constant(weights(-1.2 * carry.T))))

        query = split_heads(g, hidden, 0.5 * noise(WIDTH, inner, seed=30 + layer))
        image_keys, image_values = (
            g.op("Gather", "cross_kv", g.constant(index), axis=0) for index in (keys_index, values_index)
        )
        seen = np.zeros((inner, WIDTH))
        seen[:FEATURES, SEEN] = 0.5 * np.eye(FEATURES)
        looked = attend(g, query, image_keys, image_values)
        hidden = g.op("Add", hidden, g.op("MatMul", looked, g.constant(weights(seen))))
    g.op("Concat", *caches, axis=0, out="present_kv")
    columns, bias = output_table()
    logits = g.op("Add", g.op("MatMul", hidden, g.constant(columns)), g.constant(bias))
    steps = g.op("Cast", past, to=TensorProto.FLOAT)
    ends = np.zeros(len(VOCABULARY))
    ends[ID["[SEP]"]] = 0.7
    g.op("Add", logits, g.op("Mul", steps, g.constant(weights(ends))), out="logits")
    return g.model("decoder", *GRAPHS["decoder"])


def split_heads(g: Graph, x: str, matrix: Any) -> str:
    """(b, W) -> (b, H, 1, D)."""
    return g.shape(g.op("MatMul", x, g.constant(weights(matrix))), -1, HEADS, 1, HEAD_WIDTH)


def attend(g: Graph, query: str, keys: str, values: str) -> str:
    """Scaled dot-product attention of one query -> (b, H * D)."""
    scores = g.op(
        "Mul", g.op("MatMul", query, g.op("Transpose", keys, perm=[0, 1, 3, 2])), f32(g, HEAD_WIDTH**-0.5)
    )
    return g.shape(g.op("MatMul", g.op("Softmax", scores, axis=-1), values), -1, HEADS * HEAD_WIDTH)


def word_table() -> NDArray[np.float32]:
    """(V, W): class, nothing seen yet, own numbers."""
    table = np.zeros((len(VOCABULARY), WIDTH))
    table[:, OWN] = noise(len(VOCABULARY), OWN.stop - OWN.start, seed=3)
    for piece, kind in CLASS_OF.items():
        table[ID[piece], kind] = 1.0
    return weights(table)


def position_table() -> NDArray[np.float32]:
    """(positions, W): faint, in the own numbers only."""
    table = np.zeros((POSITIONS, WIDTH))
    table[:, OWN] = 0.05 * noise(POSITIONS, OWN.stop - OWN.start, seed=4)
    return weights(table)


def output_table() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(W, V) and (V,): the grammar, what the image adds, and a word's own numbers."""
    columns, bias = np.zeros((WIDTH, len(VOCABULARY))), np.full(len(VOCABULARY), -4.0)
    columns[OWN] = 0.6 * word_table()[:, OWN].T
    grammar = [
        (BEGIN, ["a"], 12.0),
        (ARTICLE, list(COLOURS), 14.0),
        (COLOUR, [*NOUNS, STEM], 10.0),
        (HALF, [STEM_END], 12.0),
        (NOUN, PREPOSITIONS, 10.0),
        (PREPOSITION, ["a"], 12.0),
    ]
    for kind, pieces, gain in grammar:
        for piece in pieces:
            columns[kind, ID[piece]] = gain
    for piece, seen in COLOURS.items():
        columns[SEEN, ID[piece]] = [*(2.5 * np.array(seen)), 0.0]
    columns[SEEN.stop - 1, ID[STEM]] = 8.0
    for piece in PREPOSITIONS:
        columns[SEEN.stop - 1, ID[piece]] = 5.0
    columns[NOUN, ID["[SEP]"]] = 10.0
    bias[ID["[SEP]"]] = -5.0
    bias[ID[STEM]] = -5.0
    bias[:3] = -12.0  # [PAD], [UNK] and [CLS] are never said
    return weights(columns), weights(bias)


def text() -> bytes:
    """Ids -> sum of word vectors -> unit rows; pads add nothing."""
    table = np.zeros((len(VOCABULARY), EMBEDDING))
    table[len(SPECIAL) :] = 0.1 * noise(len(VOCABULARY) - len(SPECIAL), EMBEDDING, seed=5)
    for piece, seen in COLOURS.items():
        table[ID[piece], :4] = seen
    table[ID[STEM], 4] = 0.8
    table[ID["[UNK]"]] = 0.1 * noise(EMBEDDING, seed=6)
    g = Graph()
    summed = g.op(
        "ReduceSum", g.op("Gather", g.constant(weights(table)), "ids"), g.constant(np.array([1])), keepdims=0
    )
    g.unit(g.op("Add", summed, g.constant(weights(np.eye(EMBEDDING)[-1] * 0.1))), "embedding")
    return g.model("text", *GRAPHS["text"])


def manifest_fields() -> dict[str, Any]:
    """The manifest, less what `write_bundle` adds."""
    return {
        "name": "tiny",
        "kind": ["captioner", "retriever"],
        "precision": "float32",
        "scheme": "weights set by hand",
        "preprocessing": {
            "image_px": IMAGE_PX,
            "resize": "squash",
            "filter": "bicubic",
            "mean": [127, 127, 127],
            "std": [128, 128, 128],
            "in_graph": True,
        },
        "vocabulary": {
            "kind": "wordpiece",
            "file": "vocab.txt",
            "lowercase": True,
            "pad": "[PAD]",
            "unknown": "[UNK]",
            "start": "[CLS]",
            "end": "[SEP]",
            "max_text_tokens": 20,
        },
        "decoding": {"max_new_tokens": 16, "beams": 3, "length_penalty": 1.0},
        "graphs": [
            {"role": role, "target": "onnx", "file": f"{role}.onnx", "inputs": inputs, "outputs": outputs}
            for role, (inputs, outputs) in GRAPHS.items()
        ],
        "metrics": {},
        "source": {"recipe": "tests/make_tiny_bundle.py"},
        "licence": "Apache-2.0",
    }


def main(out: Path = OUT) -> None:
    """Write the bundle over the one that is there."""
    files: dict[str, bytes | Path] = {"vocab.txt": ("\n".join(VOCABULARY) + "\n").encode()}
    files["MODEL_CARD.md"] = (
        b"# tiny\n\nSays the colours of a picture. Made by tests/make_tiny_bundle.py, for tests only.\n"
    )
    for role, make in (("vision", vision), ("decoder", decoder), ("text", text)):
        files[f"{role}.onnx"] = make()
    with staged_bundle(out, overwrite=True) as scratch:
        write_bundle(scratch, manifest_fields(), files)
    print(f"{out}: {sum(len(content) for content in files.values())} bytes", file=sys.stderr)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
