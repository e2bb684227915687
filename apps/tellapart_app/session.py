"""The window's end of the worker: questions go out, answers come in as Qt signals, nothing ever waits.

The process starts with the first question and is let go after a while without any, which is what frees its
memory. If it dies, the questions that were open are answered with an error and the next one starts another.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from PySide6.QtCore import QObject, QProcess, QTimer, Signal

__all__ = ["Session", "worker_command"]


def worker_command(model: str | None) -> list[str]:
    """How the worker is started; a frozen app starts itself."""
    frozen = bool(getattr(sys, "frozen", False))
    command = [sys.executable, *(["--worker"] if frozen else ["-m", "tellapart_app.worker"])]
    return [*command, "--model", model] if model else command


class Session(QObject):
    """Questions to one worker process after another."""

    answered = Signal(str, dict)
    """Id of the question, and the answer as the worker gave it."""

    changed = Signal(str)
    """"asleep", "starting" or "ready"."""

    def __init__(
        self, *, model: str | None = None, idle_s: float = 60.0, command: list[str] | None = None
    ) -> None:
        """Start nothing yet.

        Args:
            model: a bundle; None is the embedded one.
            idle_s: seconds without an open question after which the process is let go.
            command: program and arguments of the worker, for tests.
        """
        super().__init__()
        self._command = command or worker_command(model)
        self._process: QProcess | None = None
        self._open: dict[str, None] = {}  # ids, oldest first
        self._count, self._said = 0, b""
        self._why = ""
        self._idle = QTimer(self, singleShot=True, interval=round(idle_s * 1000))
        self._idle.timeout.connect(self.release)

    @property
    def pending(self) -> int:
        """Questions without an answer."""
        return len(self._open)

    @property
    def is_awake(self) -> bool:
        """Whether a process holds the model."""
        return self._process is not None

    def ask(self, question: dict[str, Any]) -> str:
        """Send a question and come back at once; returns its id."""
        self._count += 1
        name = str(self._count)
        self._open[name] = None
        self._idle.stop()
        process = self._process or self._start()
        process.write(json.dumps({"id": name, **question}).encode("ascii") + b"\n")
        return name

    def release(self) -> None:
        """Let the process go where nothing is open; the next question starts another."""
        if self._process is not None and not self._open:
            self._process.closeWriteChannel()

    def close(self) -> None:
        """End the process now; open questions stay without an answer."""
        self._idle.stop()
        self._open.clear()
        process, self._process = self._process, None
        if process is not None:
            process.finished.disconnect()
            process.kill()
            process.waitForFinished(2000)

    def _start(self) -> QProcess:
        process = QProcess(self)
        process.setProgram(self._command[0])
        process.setArguments(self._command[1:])
        process.readyReadStandardOutput.connect(self._read)
        process.finished.connect(self._ended)
        process.errorOccurred.connect(self._broken)
        self._process, self._said, self._why = process, b"", ""
        self.changed.emit("starting")
        process.start()
        return process

    def _read(self) -> None:
        if self._process is None:
            return
        self._said += bytes(self._process.readAllStandardOutput().data())
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            record = json.loads(line)
            if "ready" in record:
                self.changed.emit("ready")
            elif "fatal" in record:
                self._why = record["fatal"]["message"]
            elif record["id"] in self._open:
                del self._open[record["id"]]
                self.answered.emit(record.pop("id"), record)
        if not self._open:
            self._idle.start()

    def _broken(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:  # then `finished` never comes
            self._ended()

    def _ended(self) -> None:
        self._read()
        process, self._process = self._process, None
        if process is None:
            return
        if not self._why:
            words = bytes(process.readAllStandardError().data()).decode("utf-8", errors="replace").strip()
            self._why = words.splitlines()[-1] if words else process.errorString()
        process.deleteLater()
        self._idle.stop()
        open_now, self._open = self._open, {}
        message = f"The worker ended before it answered ({self._why}); ask again"
        for name in open_now:
            self.answered.emit(name, {"error": {"type": "WorkerError", "message": message}})
        self.changed.emit("asleep")
