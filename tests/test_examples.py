"""Every example does what it says: run as a user would, or in this process with the tiny bundle."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart import Captioner, DecodeOptions, LiveCaptions, LiveOptions

ROOT = Path(__file__).parents[1]


def load(name: str, folder: str = "examples") -> ModuleType:
    """An example as a module, under a name that cannot collide."""
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flat(*colour: int) -> Any:
    return np.full((24, 32, 3), colour, np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A red, a blue and another blue photo, in this order."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("1", (250, 10, 10)), ("2", (5, 15, 240)), ("3", (5, 15, 240))):
        Image.fromarray(flat(*colour)).save(folder / f"{name}.jpg", quality=95)
    return folder


def run_example(name: str, *arguments: str, folder: Path) -> str:
    """Run an example as a user does, in a folder and with a cache of its own; returns what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            str(ROOT / room) for room in ("sdk", "training", "export", "quantization")
        ),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:tellapart", ROOT / "examples" / f"{name}.py", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_caption_one_says_how_sure_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "camera" in run_example("caption_one", folder=tmp_path)
    page, gone = tmp_path / "blank.png", tmp_path / "gone.jpg"
    Image.fromarray(flat(250, 250, 250)).save(page)
    assert load("caption_one").main([str(gone), str(page)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{page}: ")
    assert "(unsure, confidence 0" in out
    assert str(gone) in err


def test_bag_game_tells_three_apart_and_writes_the_page(tmp_path: Path) -> None:
    lines = run_example("bag_game", folder=tmp_path).splitlines()
    texts = [line.split(": ")[1].split(" (")[0] for line in lines[:3]]
    assert len(set(texts)) == 3
    assert "find their own photo; see bag.html" in lines[3]
    page = (tmp_path / "bag.html").read_text(encoding="utf-8")
    assert all(text in page for text in texts)


def test_caption_folder_writes_beside_and_only_once(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    (photos / "2.jpg.xmp").write_text("edits of an evening")
    main = load("caption_folder").main
    assert main([str(photos)]) == 0
    assert "3 captioned, 0 failed" in capsys.readouterr().out
    for name in ("1", "2", "3"):
        text = (photos / f"{name}.txt").read_text(encoding="utf-8").strip()
        assert json.loads((photos / f"{name}.json").read_text(encoding="utf-8"))["caption"] == text
        assert name == "2" or text in (photos / f"{name}.jpg.xmp").read_text(encoding="utf-8")
    assert (photos / "2.jpg.xmp").read_text() == "edits of an evening"
    assert {name: (photos / name).read_bytes() for name in before} == before
    assert main([str(photos)]) == 0
    assert "0 captioned, 0 failed" in capsys.readouterr().out


def test_caption_folder_leaves_the_samples_alone(tmp_path: Path) -> None:
    assert "5 captioned, 0 failed" in run_example("caption_folder", folder=tmp_path)
    assert {path.suffix for path in (ROOT / "samples" / "photos").iterdir()} == {".jpg"}


def test_search_photos_finds_the_man_with_the_camera(tmp_path: Path) -> None:
    assert run_example("search_photos", folder=tmp_path).split()[1] == "cameraman.jpg"
    assert run_example("search_photos", str(ROOT / "samples" / "bag"), "a red shirt", folder=tmp_path)


def test_bench_device_measures(tmp_path: Path) -> None:
    out = run_example("bench_device", "3", folder=tmp_path)
    assert "3 captions" in out
    assert all(stage in out for stage in ("load", "vision", "decode", "total", "photos an hour"))


@pytest.mark.train
def test_a_tiny_pair_is_trained_exported_and_quantized(tiny_run: tuple[Path, str]) -> None:
    root, out = tiny_run
    assert "of tokens agree" in out
    rows = [json.loads(line) for line in (root / "captions.jsonl").read_text().splitlines()]
    unseen = [row for row in rows if row["split"] == "test"]
    with Captioner.open(root / "bundles" / "int8") as captioner:
        texts = [captioner.caption(root / "images" / row["image"]).text.lower() for row in unseen]
    right = sum(text == row["captions"][0] for text, row in zip(texts, unseen, strict=True))
    assert len(unseen) == 40
    assert right >= 28  # 36 when this was written; a guess gets one of 96


def test_robot_loop_runs_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("robot_loop").main(["--deadline-ms", "60000"]) == 0
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert len(records) == 5
    assert len({record["caption"] for record in records}) == 5
    assert "5 frames, 0 dropped, 5 captioned" in err


def test_robot_loop_tells_only_what_is_new(
    photos: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load("robot_loop").main
    assert main([str(photos), "--model", str(tiny_bundle)]) == 0
    assert [json.loads(line)["frame"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
    assert main([str(photos), "--model", str(tiny_bundle), "--all", "--embedding"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["state"] == "same"
    assert len(last["embedding"]) > 1


def test_robot_loop_plays_a_video_and_names_a_camera_that_is_not_there(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 20, (32, 24))
    for colour in ((250, 10, 10), (5, 15, 240)):
        for _ in range(12):
            writer.write(np.ascontiguousarray(flat(*colour)[..., ::-1]))
    writer.release()
    main = load("robot_loop").main
    assert main([str(file), "--model", str(tiny_bundle), "--looks-per-second", "10"]) == 0
    out, err = capsys.readouterr()
    red, blue = [json.loads(line)["caption"].lower() for line in out.splitlines()]
    assert "red" in red  # not blue: the channels are in order
    assert "blue" in blue
    assert "24 frames" in err
    assert main([str(tmp_path / "gone.avi"), "--model", str(tiny_bundle)]) == 1
    assert "SourceError" in capsys.readouterr().err


class FakeNode:
    """What the node needs of rclpy.node.Node, kept where the test can see it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.published: list[str] = []
        self.complaints: list[str] = []
        self.callback: Callable[[Any], None] | None = None
        self.destroyed = False

    def declare_parameter(self, _: str, default: float) -> Any:
        return SimpleNamespace(value=50.0 if default == 2.0 else default)

    def create_publisher(self, _: Any, topic: str, __: int) -> Any:
        assert topic == "caption"
        return SimpleNamespace(publish=lambda message: self.published.append(message.data))

    def create_subscription(self, _: Any, topic: str, callback: Callable[[Any], None], __: int) -> None:
        assert topic == "image"
        self.callback = callback

    def get_logger(self) -> Any:
        note = self.complaints.append
        return SimpleNamespace(error=note, warning=note, fatal=note)

    def destroy_node(self) -> None:
        self.destroyed = True


@pytest.fixture
def fake_ros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for rclpy, sensor_msgs and std_msgs."""
    for name, content in {
        "rclpy": {},
        "rclpy.node": {"Node": FakeNode},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": SimpleNamespace},
        "std_msgs": {},
        "std_msgs.msg": {"String": SimpleNamespace},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def message(pixels: Any, encoding: str, padding: int = 0) -> SimpleNamespace:
    """An image message, with bytes after each row as some drivers leave them."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, width * 3 + padding), np.uint8)
    rows[:, : width * 3] = pixels.reshape(height, -1)
    return SimpleNamespace(
        height=height, width=width, step=rows.shape[1], encoding=encoding, data=rows.tobytes()
    )


@pytest.mark.usefixtures("fake_ros")
def test_ros2_node_publishes_captions_of_new_scenes(tiny_bundle: Path) -> None:
    node = load("ros2_node").CaptionNode(str(tiny_bundle))
    node._on_image(message(flat(1, 2, 3), "mono16"))
    assert "mono16" in node.complaints[0]

    def show_until(pixels: Any, encoding: str, count: int) -> None:
        deadline = time.monotonic() + 20
        while len(node.published) < count and time.monotonic() < deadline:
            node.callback(message(pixels, encoding, padding=5))
            time.sleep(0.01)

    show_until(flat(250, 10, 10), "rgb8", 1)
    show_until(flat(5, 15, 240)[..., ::-1], "bgr8", 2)
    node.destroy_node()
    first, second = (json.loads(text) for text in node.published)
    assert "red" in first["caption"].lower()
    assert "blue" in second["caption"].lower()
    assert node.destroyed
    assert not node._thread.is_alive()
    assert len(node.complaints) == 1


def test_live_changes_are_judged_by_when_scenes_began() -> None:
    judge = load("live_changes", "benchmarks").judge
    verdict = judge([0.0, 4.0, 8.0], [0.1, 4.5, 6.0, 6.5])
    assert (verdict["changes"], verdict["reported"], verdict["false_alarms"]) == (3, 2, 2)
    assert verdict["delay_s"] == {"median": pytest.approx(0.3), "largest": pytest.approx(0.5)}


def test_the_loop_tells_every_change_of_a_rendered_video(tmp_path: Path) -> None:
    # The embedded bundle on a fade, a cut, a fade and a walker, looked at as at 2 a second; the script itself
    # plays 24 scenes in real time, which no test has patience for.
    pytest.importorskip("cv2")
    module = load("live_changes", "benchmarks")
    photos = [np.asarray(Image.open(file)) for file in sorted((ROOT / "samples" / "photos").glob("*.jpg"))]
    photos = [photo for photo in photos if photo.ndim == 3][:4]
    file = tmp_path / "changes.avi"
    starts = module.render(photos, file, scenes=4, rng=np.random.default_rng(1))
    every = 7
    frames = list(module.play(file, in_time=False))[::every]
    options = LiveOptions(look_every_s=0.0, wait=True, decode=DecodeOptions(beams=1))
    with Captioner.open() as captioner, LiveCaptions(captioner, frames, options=options) as live:
        told = [(result.frame - 1) * every / module.FPS for result in live if result.caption]
    found = module.judge(starts, told)
    assert (found["reported"], found["false_alarms"]) == (4, 0)
