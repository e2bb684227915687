"""The desktop window, drawn nowhere: captions stream in, photos are told apart, the window never waits.

Needs the extra `desktop`. TELLAPART_SCREENSHOTS names a folder for pictures to look at.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("PySide6") is None:
    pytest.skip("the extra `desktop` is not installed; `make test-app` brings it", allow_module_level=True)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

try:
    importlib.import_module("PySide6.QtWidgets")
except ImportError as error:  # Qt is there and the system's own libraries are not
    pytest.skip(
        f"Qt does not load here: {error}; apt-get install libegl1 libgl1 libxkbcommon0",
        allow_module_level=True,
    )

from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QTimer, QUrl
from PySide6.QtGui import QAccessible, QDragEnterEvent, QDropEvent, QGuiApplication
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QToolButton

from tellapart_app.session import Session
from tellapart_app.window import MainWindow

ROOT = Path(__file__).parents[2]
BAG = sorted((ROOT / "samples" / "bag").glob("*.jpg"))
PHOTOS = sorted((ROOT / "samples" / "photos").glob("*.jpg"))[:3]
READ = Qt.ItemDataRole.AccessibleTextRole


@pytest.fixture(scope="session")
def app() -> Any:
    return QApplication.instance() or QApplication([])


@pytest.fixture(autouse=True)
def worker_finds_our_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / room) for room in ("sdk", "apps")))


@pytest.fixture
def window(app: Any) -> Iterator[MainWindow]:
    window = MainWindow(Session())
    window.show()
    yield window
    window.close()


def wait(until: Callable[[], bool], seconds: float = 30.0) -> None:
    """Let Qt work until something is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it never came to pass"
        QTest.qWait(10)


def captions(window: MainWindow) -> list[str]:
    return [window.photos.item(row).text() for row in range(window.photos.count())]


def shoot(window: MainWindow, name: str) -> None:
    if folder := os.environ.get("TELLAPART_SCREENSHOTS"):
        window.grab().save(str(Path(folder) / f"{name}.png"))


def drop(window: MainWindow, paths: list[Path]) -> None:
    """As a file manager drops files."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    copy, buttons, keys = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPoint(9, 9), copy, data, buttons, keys)
    QApplication.sendEvent(window, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(window, QDropEvent(QPointF(9, 9), copy, data, buttons, keys))


# Qt 6.12 marks the only constructor with whole pixels so, and has no other in Python.
@pytest.mark.filterwarnings("ignore:Function. 'QDragEnterEvent:DeprecationWarning")
def test_dropped_photos_are_captioned_told_apart_and_copied(window: MainWindow) -> None:
    ticks: list[float] = []
    clock = QTimer(interval=10)
    clock.timeout.connect(lambda: ticks.append(time.monotonic()))
    clock.start()
    drop(window, PHOTOS)  # three that are nothing alike: how far a model goes on drawings is not Qt's matter
    assert window.photos.count() == 3
    wait(lambda: all("Confidence" in text for text in captions(window)))
    assert len({text.splitlines()[1] for text in captions(window)}) == 3
    assert "3 photos, all captioned" in window.statusBar().currentMessage()

    window.photos.setFocus()
    QTest.keyClick(window.photos, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    assert len(window.photos.selectedItems()) == 3
    QTest.keyClick(window.photos, Qt.Key.Key_T, Qt.KeyboardModifier.ControlModifier)
    wait(lambda: all("Rank" in text for text in captions(window)))
    assert any("Set apart by: " in text for text in captions(window))
    wait(lambda: not window.photos.item(2).icon().isNull())
    shoot(window, "desktop")

    QTest.keyClick(window.photos, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    lines = QGuiApplication.clipboard().text().splitlines()
    # An unsure caption says so in its own words, on the clipboard as in the list.
    shown = [text.splitlines()[1].replace("Unsure: ", "(unsure) ") for text in captions(window)]
    assert lines == shown
    clock.stop()
    # Ten milliseconds were asked for; a window that waited for a caption would miss a hundred.
    assert max(after - before for before, after in itertools.pairwise(ticks)) < 0.25


def test_everything_has_a_name_and_the_keyboard_reaches_it(window: MainWindow) -> None:
    window.add_photos(BAG[:1])
    item = window.photos.item(0)
    assert item.data(READ) == "blue.jpg, waiting for its caption"
    wait(lambda: "Confidence" in item.text())
    caption = item.text().splitlines()[1]
    assert item.data(READ).startswith(caption)  # the caption first: nobody wants to hear the file name first
    # What a screen reader asks, not what was set.
    photos = QAccessible.queryAccessibleInterface(window.photos)
    assert photos.text(QAccessible.Text.Name) == "Photos and their captions"
    assert photos.role() == QAccessible.Role.List
    assert photos.child(0).text(QAccessible.Text.Name).startswith(caption)
    assert QAccessible.queryAccessibleInterface(window.detail).text(QAccessible.Text.Name)
    assert window.statusBar().accessibleName() == "1 photo, all captioned"
    assert caption in window.detail.accessibleDescription()
    buttons = [button for button in window.actions_bar.findChildren(QToolButton) if button.isVisible()]
    assert [button.accessibleName() for button in buttons] == [
        "Add photos",
        "Tell apart",
        "Copy as alt text",
        "Remove",
    ]
    assert all(button.focusPolicy() & Qt.FocusPolicy.TabFocus for button in buttons)
    assert all(action.shortcut().toString() for action in window.actions_bar.actions())
    window.photos.setFocus()
    window.activateWindow()
    order = [window.photos, window.detail, *buttons]
    for here, there in itertools.pairwise([*order, window.photos]):  # round, and back to where it began
        QTest.keyClick(here, Qt.Key.Key_Tab)
        assert window.focusWidget() is there
    item.setSelected(True)
    window.remove_selected()
    assert window.photos.count() == 0
    assert BAG[0].exists()


def test_blank_is_unsure_broken_is_a_sentence_and_folders_are_opened(
    window: MainWindow, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (240, 240, 240)).save(tmp_path / "blank.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no photo")
    window.add_photos([tmp_path, tmp_path / "blank.png"])
    assert window.photos.count() == 2
    wait(lambda: "…" not in "".join(captions(window)))
    blank, broken = captions(window)
    assert "Unsure: " in blank
    assert window.photos.item(0).font().italic()
    assert "broken.jpg" in broken.splitlines()[1]
    window.photos.selectAll()
    window.tell_apart()  # one of them is no photo: the bag answers with a sentence
    wait(lambda: "broken.jpg" in window.statusBar().currentMessage())
    window.photos.clearSelection()
    window.tell_apart()
    assert "at least two" in window.statusBar().currentMessage()


def test_an_idle_worker_is_let_go_and_another_started(app: Any) -> None:
    session = Session(idle_s=0.2)
    answers: list[tuple[str, dict[str, Any]]] = []
    states: list[str] = []
    session.answered.connect(lambda name, record: answers.append((name, record)))
    session.changed.connect(states.append)
    assert not session.is_awake
    session.ask({"image": str(BAG[0])})
    wait(lambda: len(answers) == 1)
    wait(lambda: not session.is_awake)
    session.ask({"image": str(BAG[0])})
    wait(lambda: len(answers) == 2)
    assert answers[0][1] == answers[1][1]
    assert states[:4] == ["starting", "ready", "asleep", "starting"]
    session.close()


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit('out of memory')"],
        ["/nowhere/at/all"],
    ],
)
def test_a_worker_that_dies_is_an_error_and_not_the_end(app: Any, command: list[str]) -> None:
    session = Session(command=command)
    answers: list[dict[str, Any]] = []
    session.answered.connect(lambda _, record: answers.append(record))
    for _ in range(2):  # the second question starts another
        answers.clear()
        session.ask({"image": "a.jpg"})
        wait(lambda: len(answers) == 1, 10)
        assert answers[0]["error"]["type"] == "WorkerError"
        assert not session.is_awake
    assert session.pending == 0
    session.close()


def test_what_is_frozen_shows_a_window_and_captions() -> None:
    entry = ROOT / "apps" / "freeze" / "tellapart_desktop.py"
    done = subprocess.run(
        [sys.executable, entry, "--try", BAG[0]], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["window_s"] < found["caption_s"] < found["ended_s"]
    assert found["caption"]


def test_a_model_that_cannot_be_opened_says_why(app: Any, tmp_path: Path) -> None:
    session = Session(model=str(tmp_path))
    answers: list[dict[str, Any]] = []
    session.answered.connect(lambda _, record: answers.append(record))
    session.ask({"image": str(BAG[0])})
    wait(lambda: len(answers) == 1)
    assert "tellapart.json" in answers[0]["error"]["message"]
    session.close()
