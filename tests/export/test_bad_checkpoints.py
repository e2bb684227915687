"""Checkpoints, photos and disks that are not what they should be: typed errors, nothing half-published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from limited_disk import COMMAND, run_limited  # noqa: E402
from tellapart.bundle import open_bundle  # noqa: E402
from tellapart.errors import BundleError, CheckpointError, DataError, ParityError  # noqa: E402
from tellapart_export.build import ExportOptions, export_bundle  # noqa: E402
from tellapart_export.families import GUIDE, find_family  # noqa: E402
from toy_families import make_blip, make_clip  # noqa: E402

pytestmark = pytest.mark.train
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("whole") / "clip")


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def change_config(
    change: Callable[[dict[str, Any]], None], name: str = "config.json"
) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        page = json.loads((folder / name).read_text(encoding="utf-8"))
        change(page)
        (folder / name).write_text(json.dumps(page), encoding="utf-8")

    return apply


def remove(*names: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [change(folder) for change in changes] and None


_PROJECTION = "visual_projection.weight"
_INDEX = {"weight_map": {_PROJECTION: "one.safetensors", "more": "two.safetensors"}}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_weights, "damaged, half downloaded"),
        (write("model.safetensors", b""), "damaged, half downloaded"),
        (remove("model.safetensors"), "model.safetensors is missing"),
        (
            both(remove("model.safetensors"), write("pytorch_model.bin", b"\x80\x04.")),
            "a pickle, which can run code",
        ),
        (
            both(
                remove("model.safetensors"),
                write("model.safetensors.index.json", json.dumps(_INDEX).encode()),
            ),
            "2 of 2 files of weights",
        ),
        (write("model.safetensors.index.json", b"{"), "cannot be read"),
        (change_weights(lambda tensors: tensors.pop(_PROJECTION)), "1 missing"),
        (change_weights(lambda tensors: tensors.update(spare=torch.ones(2))), "1 left over"),
        (change_config(lambda page: page.update(projection_dim=20)), "other weights|not those of its config"),
        (change_config(lambda page: page["text_config"].update(vocab_size=9)), "other weights|not those"),
        (
            change_weights(lambda tensors: tensors[_PROJECTION][0].fill_(float("nan"))),
            "visual_projection.weight holds NaN",
        ),
        (
            change_weights(lambda tensors: tensors[_PROJECTION][0].fill_(float("inf"))),
            "NaN or infinity",
        ),
        (write("config.json", b'{"model_type": '), "not JSON"),
        (write("config.json", b"[]"), "expected a JSON object"),
        (remove("config.json"), "config.json, which is missing"),
        (remove("vocab.json", "merges.txt"), "no tokenizer"),
        (write("vocab.json", b'{"a": '), "tokenizer files cannot be read"),
        (remove("preprocessor_config.json"), "says how photos become pixels"),
        (
            change_config(lambda page: page.update(crop_size=48), "preprocessor_config.json"),
            "built for 32 x 32",
        ),
        (
            change_config(lambda page: page.update(do_normalize=False), "preprocessor_config.json"),
            "pixels unscaled",
        ),
    ],
)
def test_what_is_not_whole_is_refused(
    spoil: Callable[[Path], None], words: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole, folder)
    spoil(folder)
    with pytest.raises((CheckpointError, ParityError), match=words):
        export_bundle(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("page", "nearest"),
    [
        ({"model_type": "blip-2"}, "'blip'"),
        ({"model_type": "siglip2"}, "'siglip'"),
        ({"model_type": "vision-text-dual-encoder"}, "'vision-encoder-decoder'"),
        ({"model_type": "chinese_clip"}, "'clip'"),
        ({"model_type": "zzz"}, "clipcap, compact, git"),
        ({"family": 7}, "known ones are"),
    ],
)
def test_an_unknown_architecture_is_told_the_nearest_one_and_the_guide(
    page: dict[str, Any], nearest: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(page), encoding="utf-8")
    with pytest.raises(CheckpointError, match=nearest) as caught:
        find_family(tmp_path)
    assert GUIDE in str(caught.value)
    assert (ROOT / GUIDE).is_file()


def test_code_in_a_checkpoint_is_never_run(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole, folder)
    trap = "import pathlib\npathlib.Path(__file__).with_name('ran').write_text('')\n"
    (folder / "configuration_trap.py").write_text(trap, encoding="utf-8")
    places = {"AutoConfig": "configuration_trap.Trap", "AutoModel": "configuration_trap.Trap"}
    change_config(lambda page: page.update(auto_map=places))(folder)
    export_bundle(folder, tmp_path / "out")
    assert not (folder / "ran").exists()
    change_config(lambda page: page.update(model_type="trap"))(folder)
    with pytest.raises(CheckpointError, match="'trap'"):
        export_bundle(folder, tmp_path / "other")
    assert not (folder / "ran").exists()


def test_photos_that_are_not_there(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in ((tmp_path / "empty", "no photo inside"), (tmp_path / "none", "expected a folder")):
        with pytest.raises(DataError, match=words):
            export_bundle(whole, tmp_path / "out", ExportOptions(images=folder))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_disk_that_fills_up_leaves_the_old_bundle(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_bundle(whole, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done = run_limited(COMMAND, tmp_path, "export", str(whole), "--out", str(out), "--overwrite")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "BundleError" in done.stderr
    assert "make room" in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".scratch")]
    with open_bundle(out):
        pass


def test_openvino_says_when_the_disk_is_full(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    export_bundle(whole, tmp_path / "out")
    code = (
        "from pathlib import Path\n"
        "from tellapart.bundle import open_bundle\n"
        "from tellapart.errors import BundleError\n"
        "from tellapart_export.to_openvino import convert_graph\n"
        "with open_bundle(sys.argv[1]) as bundle:\n"
        "    spec = bundle.graph('text')\n"
        "    try:\n"
        "        convert_graph(bundle.path(spec.file), spec, Path(sys.argv[2]))\n"
        "    except BundleError as error:\n"
        "        print('refused', error)\n"
    )
    done = run_limited(code, tmp_path, str(tmp_path / "out"), str(tmp_path / "text.xml"))
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout


def test_an_output_in_use_is_left_alone(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(BundleError):
            export_bundle(whole, out, ExportOptions(overwrite=overwrite))
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(BundleError):
        export_bundle(whole, tmp_path / "no" / "such" / "folder")


def test_another_blip_is_refused(tmp_path: Path) -> None:
    folder = make_blip(tmp_path / "checkpoint")

    def to_question_answering(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("text_decoder.")]:
            tensors["text_encoder." + name] = tensors.pop(name)

    change_weights(to_question_answering)(folder)
    with pytest.raises(CheckpointError, match="export with the class that the checkpoint was saved from"):
        export_bundle(folder, tmp_path / "out")
