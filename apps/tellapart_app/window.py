"""The desktop window: photos dropped in are captioned as they come, and selected ones told apart.

Everything slow is elsewhere: captions in the worker process, thumbnails on Qt's thread pool. All can be done
from the keyboard, and every item tells a screen reader what it tells the eye.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QRunnable, QSize, Qt, QThreadPool, Signal
from PySide6.QtGui import (
    QAccessible,
    QAccessibleAnnouncementEvent,
    QAction,
    QCloseEvent,
    QDragEnterEvent,
    QDropEvent,
    QGuiApplication,
    QIcon,
    QImage,
    QImageReader,
    QKeySequence,
    QPixmap,
)
from PySide6.QtWidgets import (
    QApplication,
    QFileDialog,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QMainWindow,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from tellapart.search import IMAGE_SUFFIXES
from tellapart_app.session import Session

__all__ = ["MainWindow", "run_window"]

_THUMBNAIL_PX = 120
_HINT = "Drop photos here, or press Ctrl+O to choose some."


class _Pictures(QObject):
    ready = Signal(str, QImage)


class _Thumbnail(QRunnable):
    """Reads one photo small, off the thread that draws."""

    def __init__(self, path: str, pictures: _Pictures) -> None:
        super().__init__()
        self._path, self._pictures = path, pictures

    def run(self) -> None:
        """Read it; what cannot be read stays without a picture, and its caption says why."""
        reader = QImageReader(self._path)
        reader.setAutoTransform(True)
        size = reader.size()
        if size.isValid():
            size.scale(QSize(_THUMBNAIL_PX, _THUMBNAIL_PX), Qt.AspectRatioMode.KeepAspectRatio)
            reader.setScaledSize(size.expandedTo(QSize(1, 1)))
        image = reader.read()
        if not image.isNull():
            self._pictures.ready.emit(self._path, image)


class MainWindow(QMainWindow):
    """A list of photos with their captions, and what is known about the one at hand."""

    def __init__(self, session: Session) -> None:
        """Lay the window out; `session` is the caller's and is closed with the window."""
        super().__init__()
        self._session = session
        self._items: dict[str, QListWidgetItem] = {}  # by path
        self._asked: dict[str, list[str]] = {}  # id of a question -> paths it is about
        self._told: dict[str, dict[str, Any]] = {}  # by path, the newest answer
        self._was_waiting = False
        self._pictures = _Pictures()
        self._pictures.ready.connect(self._show_picture)
        session.answered.connect(self._answered)
        session.changed.connect(lambda _: self._say())
        self.setWindowTitle("tellapart")
        self.setAcceptDrops(True)
        self.resize(900, 640)
        self._lay_out()
        self._add_actions()
        self._say()

    def add_photos(self, paths: Iterable[Path]) -> None:
        """Take photos, and every photo of folders, and ask for their captions; known ones are passed over."""
        for path in paths:
            if path.is_dir():
                inside = sorted(path.iterdir())
                self.add_photos(file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES)
                continue
            name = str(path.absolute())
            if name in self._items:
                continue
            item = QListWidgetItem(f"{path.name}\n…")
            item.setData(Qt.ItemDataRole.UserRole, name)
            item.setData(Qt.ItemDataRole.AccessibleTextRole, f"{path.name}, waiting for its caption")
            self._items[name] = item
            self.photos.addItem(item)
            QThreadPool.globalInstance().start(_Thumbnail(name, self._pictures))
            self._asked[self._session.ask({"image": name})] = [name]
        if self.photos.currentRow() < 0 and self.photos.count():
            self.photos.setCurrentRow(0)
        self._say()

    def tell_apart(self) -> None:
        """Ask for captions that tell the selected photos apart."""
        paths = self._selected()
        if len(paths) < 2:
            self._say("Select at least two photos to tell apart.")
            return
        self._asked[self._session.ask({"images": paths})] = paths
        self._say()

    def copy_alt_text(self) -> None:
        """Put the captions of the selected photos on the clipboard, a line each; what is unsure says so."""
        told = [self._told[path] for path in self._selected() if "caption" in self._told.get(path, {})]
        if not told:
            self._say("Select photos that have a caption.")
            return
        lines = [("(unsure) " if record["unsure"] else "") + record["caption"] for record in told]
        QGuiApplication.clipboard().setText("\n".join(lines))
        self._say("Copied." if len(lines) == 1 else f"Copied {len(lines)} captions.")

    def remove_selected(self) -> None:
        """Take the selected photos off the list; the files stay as they are."""
        for path in self._selected():
            self.photos.takeItem(self.photos.row(self._items.pop(path)))
            self._told.pop(path, None)
        self._say()

    def choose_photos(self) -> None:
        """Ask for files."""
        kinds = " ".join(f"*{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
        names, _ = QFileDialog.getOpenFileNames(self, "Add photos", "", f"Photos ({kinds})")
        self.add_photos(map(Path, names))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Take files, nothing else."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        """Take what was dropped."""
        self.add_photos(Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile())
        event.acceptProposedAction()

    def closeEvent(self, event: QCloseEvent) -> None:
        """End the worker with the window."""
        self._session.close()
        super().closeEvent(event)

    def _lay_out(self) -> None:
        self.photos = QListWidget()
        self.photos.setAccessibleName("Photos and their captions")
        self.photos.setAccessibleDescription(_HINT)
        self.photos.setSelectionMode(QListWidget.SelectionMode.ExtendedSelection)
        self.photos.setIconSize(QSize(_THUMBNAIL_PX, _THUMBNAIL_PX))
        self.photos.setWordWrap(True)
        self.photos.setSpacing(4)
        self.photos.itemSelectionChanged.connect(self._show_detail)
        self.photos.currentItemChanged.connect(lambda *_: self._show_detail())
        self.detail = QLabel(_HINT)
        self.detail.setAccessibleName("The photo at hand")
        self.detail.setWordWrap(True)
        self.detail.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.detail.setMargin(12)
        self.detail.setTextFormat(Qt.TextFormat.PlainText)  # a caption or a file name is never markup
        self.detail.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByKeyboard | Qt.TextInteractionFlag.TextSelectableByMouse
        )
        self.detail.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        split = QSplitter(Qt.Orientation.Horizontal)
        split.addWidget(self.photos)
        split.addWidget(self.detail)
        split.setSizes([600, 300])
        middle = QWidget()
        QVBoxLayout(middle).addWidget(split)
        self.setCentralWidget(middle)
        self.setTabOrder(self.photos, self.detail)
        self.photos.setFocus()

    def _add_actions(self) -> None:
        bar = self.addToolBar("Actions")
        bar.setMovable(False)
        for words, keys, does in (
            ("&Add photos…", QKeySequence.StandardKey.Open, self.choose_photos),
            ("&Tell apart", "Ctrl+T", self.tell_apart),
            ("&Copy as alt text", QKeySequence.StandardKey.Copy, self.copy_alt_text),
            ("&Remove", QKeySequence.StandardKey.Delete, self.remove_selected),
        ):
            action = QAction(words, self)
            action.setShortcut(QKeySequence(keys))
            action.triggered.connect(does)
            bar.addAction(action)
            button = bar.widgetForAction(action)
            plain = words.replace("&", "").replace("…", "")
            shown = action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)
            action.setToolTip(f"{plain} ({shown})")
            button.setAccessibleName(plain)
            button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.actions_bar = bar

    def _selected(self) -> list[str]:
        """Paths of the selected photos, in the order of the list."""
        rows = sorted(self.photos.row(item) for item in self.photos.selectedItems())
        return [self.photos.item(row).data(Qt.ItemDataRole.UserRole) for row in rows]

    def _answered(self, name: str, record: dict[str, Any]) -> None:
        paths = self._asked.pop(name, [])
        if "captions" in record:
            for path, told in zip(paths, record["captions"], strict=True):
                self._take(path, {**told, "bag": len(paths)})
        elif "error" in record and len(paths) > 1:
            self._say(record["error"]["message"])
            return
        else:
            for path in paths:
                self._take(path, record)
        self._say()

    def _take(self, path: str, record: dict[str, Any]) -> None:
        """Keep the newest answer about a photo and show it; one that was removed meanwhile is passed over."""
        item = self._items.get(path)
        if item is None:
            return
        self._told[path] = record
        lines = _lines(record)
        item.setText("\n".join([Path(path).name, *lines]))
        item.setData(Qt.ItemDataRole.AccessibleTextRole, ", ".join([*lines, Path(path).name]))
        font = item.font()
        font.setItalic(bool(record.get("unsure")))
        item.setFont(font)
        self._show_detail()

    def _show_picture(self, path: str, image: QImage) -> None:
        item = self._items.get(path)
        if item is not None:
            item.setIcon(QIcon(QPixmap.fromImage(image)))

    def _show_detail(self) -> None:
        item = self.photos.currentItem()
        if item is None:
            self.detail.setText(_HINT)
            return
        path = item.data(Qt.ItemDataRole.UserRole)
        record = self._told.get(path)
        lines = ["Waiting for its caption."] if record is None else _lines(record, at_length=True)
        text = "\n\n".join([Path(path).name, *lines])
        self.detail.setText(text)
        self.detail.setAccessibleDescription(text)

    def _say(self, words: str = "") -> None:
        """The status line; without words, how far things are. A screen reader hears what is worth hearing."""
        is_news = bool(words) or (self._was_waiting and not self._session.pending)
        self._was_waiting = self._session.pending > 0
        if not words:
            waiting, count = self._session.pending, len(self._items)
            photos = f"{count} photo{'' if count == 1 else 's'}"
            state = f"{waiting} to go" if waiting else "all captioned" if count else _HINT
            words = f"{photos}, {state}" if count else state
        self.statusBar().showMessage(words)
        self.statusBar().setAccessibleName(words)
        if is_news:
            QAccessible.updateAccessibility(QAccessibleAnnouncementEvent(self, words))


def _lines(record: dict[str, Any], *, at_length: bool = False) -> list[str]:
    """What an answer says, for people: the same words for the eye and for a screen reader."""
    if "error" in record:
        return [record["error"]["message"]]
    lines = [("Unsure: " if record["unsure"] else "") + record["caption"]]
    if record["confidence"] is not None:
        share = f"{record['confidence']:.0%}"
        lines.append(
            f"Confidence {share}: the chance that these words find this photo among 100."
            if at_length
            else f"Confidence {share}"
        )
    if "bag" in record:
        words = ", ".join(record["apart"])
        if words:
            lines.append(f"Set apart by: {words}")
        place = f"Rank {record['rank']} of {record['bag']}"
        first = (
            "the words find this photo first" if record["rank"] == 1 else "the words find another photo first"
        )
        lines.append(f"{place}: {first}." if at_length else place)
    return lines


def run_window(photos: Sequence[Path] = (), *, model: Path | None = None) -> int:
    """Show the window until it is closed; returns the exit status of Qt."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would wait until Qt calls Python again
    app = QApplication.instance() or QApplication(sys.argv[:1])
    app.setApplicationName("tellapart")
    window = MainWindow(Session(model=None if model is None else str(model.absolute())))
    window.show()
    window.add_photos(photos)
    return int(QApplication.exec())
