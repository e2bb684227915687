"""Captions and figures of the study on the toy world: kept, made again where they must be, gathered whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tellapart.errors import CheckpointError, DataError  # noqa: E402
from tellapart.truematch import write_benchmark  # noqa: E402
from tellapart_model.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from tellapart_training.data import read_captions  # noqa: E402
from tellapart_training.images import ImageSource  # noqa: E402
from tellapart_training.study import measure as measuring  # noqa: E402
from tellapart_training.study.captions import captions_for, features_of  # noqa: E402
from tellapart_training.study.measure import measure  # noqa: E402
from tellapart_training.study.rows import Places  # noqa: E402

pytestmark = pytest.mark.train

NAMES = [f"{index}.png" for index in range(24)]


def _trunk(path: Path) -> Path:
    """A graph that stands for a trunk: pixels (b, 32, 32, 3) -> features (b, 1, 1280), the upper rows."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "flat"], ["rows"]),
        helper.make_node("Slice", ["rows", "from", "to", "axis"], ["part"]),
        helper.make_node("Div", ["part", "scale"], ["features"]),
    ]
    constants = [
        helper.make_tensor("flat", TensorProto.INT64, [3], [0, 1, 3072]),
        helper.make_tensor("from", TensorProto.INT64, [1], [0]),
        helper.make_tensor("to", TensorProto.INT64, [1], [1280]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [2]),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [100.0]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", 32, 32, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["b", 1, 1280])
    graph = helper.make_graph(nodes, "g", [pixels], [features], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def _other(checkpoint: Path, out: Path) -> None:
    """The checkpoint with other weights in the decoder's last layer."""
    loaded = load_checkpoint(checkpoint)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in loaded.model.decoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    save_checkpoint(out, loaded.model, vocabulary=loaded.vocabulary)


@pytest.fixture
def places(toy_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Data, scorer, judge, language model and the starts of two seeds; the toy benchmark is in use."""
    found = Places(tmp_path / "data", tmp_path / "study", tmp_path / "embedded")
    lines = (toy_world / "captions.jsonl").read_text(encoding="utf-8").replace('"train"', '"val"')
    for name in ("flickr8k", "coco_val100"):
        folder = found.data / name
        folder.mkdir(parents=True)
        (folder / "captions.jsonl").write_text(lines, encoding="utf-8")
        (folder / "images.tar").symlink_to(toy_world / "images")
    (found.data / "flickr8k/captions.jsonl").write_text(
        lines + '{"image": "absent.png", "split": "train", "captions": ["a", "b", "c", "d", "e"]}\n'
    )
    found.embedded.mkdir()
    (found.embedded / "trunk-int8").mkdir()
    for made in ("embedded/heads/last", "study/judge/best", "study/language/best", "study/mle-0/last"):
        shutil.copytree(toy_world / "init", tmp_path / made)
    _other(toy_world / "init", found.run / "sr-0/last")
    for name in ("mle-0", "sr-0"):
        (found.run / name / "run.json").write_text('{"finished": true}')
    metrics = [
        {"kind": "train", "step": step, "elapsed_s": step / 4, "time_sampling": 0.5, "time_scoring": 0.2,
         "time_backward": 0.2, "time_other": 0.1}
        for step in range(1, 9)
    ]  # fmt: skip
    metrics.insert(3, {"kind": "evaluate", "step": 3})
    (found.run / "sr-0/metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in metrics))
    write_benchmark(tmp_path / "bench", bags={3: [NAMES[0:3], NAMES[3:6]], 5: [NAMES[0:5]]})
    monkeypatch.setattr(measuring, "BENCHMARK", tmp_path / "bench")
    trunk = _trunk(tmp_path / "trunk.onnx")
    monkeypatch.setattr(
        measuring, "features_of", lambda *args, **named: features_of(*args, **{**named, "trunk": trunk})
    )
    return found


def test_captions_are_kept_until_the_checkpoint_changes(places: Places, tmp_path: Path) -> None:
    source, names = ImageSource(places.data / "coco_val100/images.tar"), NAMES[:4]
    start = places.embedded / "heads/last"
    features = features_of(
        source, names, trunk=tmp_path / "trunk.onnx", start=start, cache=tmp_path / "cache"
    )
    assert features.shape[:2] == (4, 1)
    out = tmp_path / "captions.json"
    first = captions_for(start, names, features, out=out, batch_size=3)
    assert json.loads(out.read_text()) == dict(zip(names, first, strict=True))
    # A changed file shows that it is read back, in the order asked for.
    out.write_text(json.dumps({name: f"kept {name}" for name in names}))
    assert captions_for(start, names[::-1], features, out=out) == [f"kept {name}" for name in names[::-1]]
    # Captions of fewer images, or a damaged file, are made again.
    for damage in (json.dumps({"0.png": "kept"}), "{"):
        out.write_text(damage)
        assert captions_for(start, names, features, out=out) == first
    assert captions_for(places.run / "sr-0/last", names, features, out=out) != first
    assert list(tmp_path.glob(".captions*")) == []


def test_every_finished_run_is_measured_on_both_sets(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (places.run / "cider-0").mkdir()
    (places.run / "cider-0/run.json").write_text('{"finished": false}')
    (places.run / "sr-hard-0").mkdir()
    (places.run / "sr-hard-0/run.json").write_text("[]")  # not a page of facts
    out = tmp_path / "docs/results.json"
    measure(places, out)
    results = json.loads(out.read_text())
    assert {name: [run["seed"] for run in row["runs"]] for name, row in results["rows"].items()} == {
        "human": [0, 1, 2], "mle": [0], "sr": [0],
    }  # fmt: skip
    for row in results["rows"].values():
        for run in row["runs"]:
            assert {"judge.judge.bags_3", "judge.scorer.bags_5", "cider_d", "chair_i"} <= run["val"].keys()
            assert "judge.judge.bags_3" not in run["coco_val100"]
            assert "judge.judge.rd100" in run["coco_val100"]
            assert 0 <= run["val"]["judge.judge.rd100"] <= 1
    assert results["judged"]["val"]["bags"] == {"3": 2, "5": 1}
    # Entries 5 to 8: steps 5 to 8 in 0.75 s.
    assert results["training"] == {
        "sr": {"steps_per_s": 4.0, "time_sampling": 0.5, "time_scoring": 0.2, "time_backward": 0.2,
               "time_other": 0.1}
    }  # fmt: skip
    told = capsys.readouterr().err
    assert "left out: " in told
    assert "cider-0" in told.split("left out: ")[1].splitlines()[0].split(", ")
    captions = json.loads((places.run / "sr-0/captions-val.json").read_text())
    assert list(captions) == NAMES
    # Each human writer against the others scores apart.
    humans = [run["val"]["cider_d"] for run in results["rows"]["human"]["runs"]]
    assert len(set(humans)) == 3


def test_too_short_a_run_has_no_speed_and_stops_nothing(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        measuring, "captions_for", lambda _path, names, _features, **_: ["a dog"] * len(names)
    )
    (places.run / "cider-1").mkdir()
    (places.run / "cider-1/run.json").write_text('{"finished": true}')
    with (places.run / "sr-0/metrics.jsonl").open() as whole:
        (places.run / "cider-1/metrics.jsonl").write_text(whole.readline())
    (places.run / "sr-0/metrics.jsonl").unlink()
    measure(places, tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["training"] == {}
    assert [run["seed"] for run in results["rows"]["cider"]["runs"]] == [1]


def test_nothing_to_measure_is_said_and_nothing_written(places: Places, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    shutil.rmtree(places.run / "judge")
    with pytest.raises(CheckpointError, match="judge"):
        measure(places, out)
    for name in ("mle-0", "sr-0"):
        (places.run / name / "run.json").unlink()
    with pytest.raises(DataError, match="no finished run"):
        measure(places, out)
    assert not out.exists()


def test_the_human_row_needs_more_captions_than_seeds(places: Places, tmp_path: Path) -> None:
    file = places.data / "flickr8k/captions.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[4]["captions"] = lines[4]["captions"][:3]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(read_captions(file)[4].captions) == 3
    with pytest.raises(DataError, match=r"more than 3 captions of every image, and 4\.png"):
        measure(places, tmp_path / "results.json")
