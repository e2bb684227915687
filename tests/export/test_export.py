"""A toy pair through the whole export: names, parity, greedy tokens, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from tellapart.backends import open_session  # noqa: E402
from tellapart.bundle import open_bundle  # noqa: E402
from tellapart.cli import main  # noqa: E402
from tellapart.errors import CheckpointError, ParityError, UsageError  # noqa: E402
from tellapart.plan import make_plan  # noqa: E402
from tellapart.tokenizer import Tokenizer  # noqa: E402
from tellapart.types import DecodeOptions, RuntimeOptions  # noqa: E402
from tellapart_export.build import ExportOptions, export_bundle  # noqa: E402
from tellapart_export.families.compact import FEATURES, open_checkpoint  # noqa: E402
from tellapart_export.graphs import SourceGraph  # noqa: E402
from tellapart_export.parity import Tolerance, check_graph, check_rows, check_tokens, feeds_for  # noqa: E402
from tellapart_export.vocabulary import write_vocabulary  # noqa: E402
from tellapart_model.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402

pytestmark = pytest.mark.train
SAMPLES = Path(__file__).parents[2] / "samples" / "photos"


def pixels(count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def test_the_bundle_holds_what_the_plan_names(toy_bundle: Path) -> None:
    with open_bundle(toy_bundle) as bundle:
        manifest = bundle.manifest
        names = {
            graph.role: ([t.name for t in graph.inputs], [t.name for t in graph.outputs])
            for graph in manifest.graphs
        }
        assert names == {
            "vision": (["pixels"], ["cross_kv", "embedding"]),
            "decoder": (["ids", "past_kv", "cross_kv"], ["logits", "present_kv"]),
            "text": (["ids"], ["embedding"]),
        }
        assert manifest.precision == "float32"
        assert manifest.preprocessing.image_px == 32
        assert manifest.preprocessing.in_graph
        assert manifest.decoding.max_new_tokens == 15  # 16 positions, one of them the start mark's
        assert manifest.parity["greedy_tokens_equal"] == 8
        assert "drawn" in manifest.parity["photos"]
        assert set(manifest.parity["machine"]) == {"cpu", "cpu_flags", "cores", "packages"}
        page = bundle.read_bytes("REPORT.md").decode("utf-8")
        assert "| greedy tokens equal | 8 |" in page
        assert "| decoder.logits | " in page
        assert set(manifest.parity["graphs"]) == {
            "vision.cross_kv",
            "vision.embedding",
            "decoder.logits",
            "decoder.present_kv",
            "text.embedding",
        }
        for graph in manifest.graphs:
            model = onnx.load(bundle.path(graph.file))
            assert [value.name for value in model.graph.input] == [t.name for t in graph.inputs]
            assert [value.name for value in model.graph.output] == [t.name for t in graph.outputs]
            assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
            assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_trunk_ends_in_a_tensor_with_a_stable_name(toy_bundle: Path, toy_checkpoint: Path) -> None:
    from tellapart_quantization.features import feature_session

    pair = load_checkpoint(toy_checkpoint).model
    with torch.no_grad():
        wanted = pair.features(torch.from_numpy(pixels())).numpy()
    assert FEATURES == "features"
    np.testing.assert_allclose(feature_session(toy_bundle)(pixels()), wanted, atol=1e-4)


def test_one_token_is_turned_nowhere_in_a_step(toy_bundle: Path) -> None:
    # (b, 1, H, D) and (b, H, 1, D) are the same numbers in the same places; only keys are turned, for the
    # product with the query: once for the past and once for the image in each layer.
    graph = onnx.load(toy_bundle / "decoder.onnx").graph
    turns = [list(item.ints) for node in graph.node if node.op_type == "Transpose" for item in node.attribute]
    [past] = [value for value in graph.input if value.name == "past_kv"]
    layers = past.type.tensor_type.shape.dim[0].dim_value // 2
    keys = [turn for turn in turns if len(turn) == 4]
    assert keys == [[0, 1, 3, 2]] * (2 * layers)


def test_a_step_at_every_past_length_is_the_network(toy_bundle: Path, toy_checkpoint: Path) -> None:
    subject = open_checkpoint(toy_checkpoint)
    source = next(graph for graph in subject.graphs if graph.spec.role == "decoder")
    with open_bundle(toy_bundle) as bundle:
        session = open_session(bundle, "decoder", RuntimeOptions(threads=1))
        feeds = feeds_for(subject, source, pixels())
        assert {feed["past_kv"].shape[3] for feed in feeds} == {0, 1, 15}
        assert len(check_graph(source, session, feeds)) == 2
        session.close()


def test_other_weights_are_not_equal(toy_bundle: Path, toy_checkpoint: Path) -> None:
    subject = open_checkpoint(toy_checkpoint)
    source = next(graph for graph in subject.graphs if graph.spec.role == "decoder")
    with open_bundle(toy_bundle) as bundle:
        plan = make_plan(DecodeOptions(beams=1), bundle.manifest.decoding, Tokenizer.from_bundle(bundle))
        runtime = RuntimeOptions(threads=1)
        vision, decoder, text = (
            open_session(bundle, role, runtime) for role in ("vision", "decoder", "text")
        )
        found = check_tokens(subject, vision, decoder, [pixels()], rules=plan.rules)
        assert (found.equal, found.draws, found.first_divergence) == (4, 0, None)
        assert found.tokens > 8
        assert 0 < found.max_logit_error < 1e-4
        with torch.no_grad():
            source.module.decoder.logit_bias += torch.linspace(-3, 3, 64)
        with pytest.raises(ParityError, match=r"decoder\.logits: differs"):
            check_graph(source, decoder, feeds_for(subject, source, pixels()))
        with pytest.raises(ParityError, match="photo 1, token 1, logits: differs"):
            check_tokens(subject, vision, decoder, [pixels()], rules=plan.rules)
        # Gaps that hide among large numbers still show in what is said.
        loose = Tolerance(relative=10.0, cosine=-1.0)
        with pytest.raises(ParityError, match="photo 1: after") as raised:
            check_tokens(subject, vision, decoder, [pixels()], rules=plan.rules, tolerance=loose)
        message = str(raised.value)
        counted = dataclasses.replace(loose, exact=False)
        found = check_tokens(subject, vision, decoder, [pixels()], rules=plan.rules, tolerance=counted)
        assert found.others > 0
        apart = found.first_divergence
        assert apart is not None
        assert f"the network says {apart.network}, the graphs say {apart.graphs};" in message
        before = json.loads(message[message.index("[") : message.index("]") + 1])
        assert (apart.photo, apart.token) == (1, len(before) + 1)
        assert apart.to_fields(["cat.jpg"]) == {**apart.to_fields([]), "name": "cat.jpg"}
        drawn = dataclasses.replace(loose, tie=10.0)
        found = check_tokens(subject, vision, decoder, [pixels()], rules=plan.rules, tolerance=drawn)
        assert found.draws > 0
        assert set(check_rows(subject, vision, text, [pixels()])) == {"images", "texts"}
        with torch.no_grad():
            source.module.decoder.logit_bias.zero_()
            subject.graphs[0].module.pair.pool.mean.weight.mul_(-3)
        with pytest.raises(ParityError, match="images: differs"):
            check_rows(subject, vision, text, [pixels()])
        vision.close()
        decoder.close()
        text.close()


def test_captions_of_the_toy_differ(toy_checkpoint: Path) -> None:
    # Else equal tokens would say little.
    from tellapart_model import generate

    pair = load_checkpoint(toy_checkpoint).model
    with torch.no_grad():
        found = generate.greedy(pair, pair(torch.from_numpy(pixels(8)))[0], max_new_tokens=16)
    assert len({tuple(row) for row in found.tolist()}) > 1


def test_a_failed_proof_leaves_nothing(
    toy_checkpoint: Path,
    toy_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = load_checkpoint(toy_checkpoint)
    with torch.no_grad():
        loaded.model.text.out.weight.mul_(-1)
    save_checkpoint(tmp_path / "other", loaded.model, vocabulary=loaded.vocabulary)

    def copy_graph(source: SourceGraph, file: Path) -> None:  # an exporter that gets the weights wrong
        shutil.copyfile(toy_bundle / source.spec.file, file)

    monkeypatch.setattr("tellapart_export.build.export_graph", copy_graph)
    with pytest.raises(ParityError, match=r"text\.embedding"):
        export_bundle(tmp_path / "other", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    monkeypatch.setattr("tellapart.commands.progress._PLAIN_LINE_S", 0.0)
    capsys.readouterr()
    export_bundle(toy_checkpoint, tmp_path / "out", ExportOptions(images=SAMPLES, limit=2, progress=True))
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(" images")[0] for line in shown] == ["tellapart: 1/2", "tellapart: 2/2"]
    assert ", 2 alike, logits within " in shown[-1]
    with open_bundle(tmp_path / "out") as bundle:
        assert bundle.manifest.parity["greedy_tokens_equal"] == 2
        assert bundle.manifest.parity["photos"] == SAMPLES.name
        assert bundle.manifest.parity["greedy_first_divergence"] is None
        assert "| greedy first divergence | - |" in bundle.read_bytes("REPORT.md").decode("utf-8")


def test_strangers_are_told_what_is_supported(tmp_path: Path, toy_checkpoint: Path) -> None:
    for content, kind, near in (
        ({"architecture": "compcat"}, "compcat", "nearest known one is 'compact'"),
        ({"model_type": "llava"}, "llava", "known ones are .*compact"),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=f"'{kind}'.*{near}.*docs/add_a_family.md"):
            export_bundle(folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        export_bundle(tmp_path / "nowhere", tmp_path / "out")
    damaged = tmp_path / "damaged"
    shutil.copytree(toy_checkpoint, damaged)
    with (damaged / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x7f")
    with pytest.raises(CheckpointError, match="sha256"):
        export_bundle(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_so_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "fuyu"}')
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "CheckpointError" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out"), "--target", "tflite"]) == 2


def test_options_check_themselves() -> None:
    with pytest.raises(UsageError, match="tflite"):
        ExportOptions(targets=("tflite",))
    with pytest.raises(UsageError, match="split"):
        ExportOptions(split="val")
    with pytest.raises(UsageError, match="limit"):
        ExportOptions(limit=0)


def test_a_vocabulary_in_another_order_is_refused() -> None:
    content, vocabulary = write_vocabulary(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b"], max_text_tokens=9
    )
    assert content == b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n##b\n"
    assert vocabulary.max_text_tokens == 9
    with pytest.raises(CheckpointError, match="first"):
        write_vocabulary(["[UNK]", "[PAD]", "[CLS]", "[SEP]", "a"], max_text_tokens=9)


def test_decoding_defaults_travel_into_the_bundle(toy_checkpoint: Path, tmp_path: Path) -> None:
    chosen = ExportOptions(beams=2, length_penalty=0.6, max_new_tokens=9)
    decoding = export_bundle(toy_checkpoint, tmp_path / "out", chosen).decoding
    assert (decoding.beams, decoding.length_penalty, decoding.max_new_tokens) == (2, 0.6, 9)
    with pytest.raises(UsageError, match="room for"):
        export_bundle(toy_checkpoint, tmp_path / "longer", ExportOptions(max_new_tokens=99))


def test_decoding_defaults_that_nobody_could_use_are_refused() -> None:
    with pytest.raises(UsageError, match="beams"):
        ExportOptions(beams=0)
