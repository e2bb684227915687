"""Every example does what it says: run as a user would, or in this process with the tiny bundle."""

from __future__ import annotations

import importlib.util
import json
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
