"""WorkerCaptioner: captions from a process of its own, whose crash is an error and whose end frees memory.

    with WorkerCaptioner.open(idle_unload_s=60) as captioner:
        print(captioner.caption("photo.jpg").text)

A runtime is millions of lines of native code, and a process does not survive its faults; nor does it get all
memory back that a runtime used. Where that matters (a screen reader, a photo manager that runs for weeks) the
model lives in a child process. It starts with the first question, ends after a while without any, and is
started again by the next. It costs about 0.3 s at the start and a millisecond a question.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from tellapart.bag import BagMode
from tellapart.errors import ClosedError, UsageError, WorkerError
from tellapart.types import BagResult, Caption, DecodeOptions, ImageInput, RuntimeOptions
from tellapart.worker_lines import bag_from, caption_from, error_from, to_image, to_options

__all__ = ["WorkerCaptioner"]

_END_S = 5.0
"""Longest wait for a process that was asked to end."""


class WorkerCaptioner:
    """Captions as `Captioner` does, out of process; a context manager; safe from many threads, in turns."""

    def __init__(
        self, command: Sequence[str], *, idle_unload_s: float | None = None, timeout_s: float | None = None
    ) -> None:
        """Start nothing yet; `WorkerCaptioner.open` is the way to call this.

        Args:
            command: program and arguments of the worker; a frozen app names itself here and calls
                `tellapart.worker.main`.
            idle_unload_s: seconds without a question after which the process is let go; None keeps it.
            timeout_s: longest wait for an answer, the start included; None waits for ever.

        Raises:
            UsageError: a time that is not above 0.
        """
        for name, value in (("idle_unload_s", idle_unload_s), ("timeout_s", timeout_s)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} must be above 0 or None, got {value!r}")
        self._command = list(command)
        self._idle_unload_s, self._timeout_s = idle_unload_s, timeout_s
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._words: deque[str] = deque(maxlen=20)
        self._idle: threading.Timer | None = None
        self._count = 0
        self._closed = False

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        *,
        runtime: RuntimeOptions | None = None,
        idle_unload_s: float | None = None,
        timeout_s: float | None = None,
    ) -> WorkerCaptioner:
        """A worker for a bundle; the bundle is opened by the first question.

        Args:
            bundle: a folder or an uncompressed zip; None is the bundle inside the package.
            runtime: backend, providers, threads, largest image.
            idle_unload_s: see `__init__`; None takes that of `runtime`.
            timeout_s: see `__init__`.

        Raises:
            UsageError: a time that is not above 0.
        """
        runtime = runtime or RuntimeOptions()
        idle_unload_s = runtime.idle_unload_s if idle_unload_s is None else idle_unload_s
        # The process goes as a whole; a second clock inside would only unload what is about to end.
        page = json.dumps(to_options(replace(runtime, idle_unload_s=None)))
        command = [sys.executable, "-m", "tellapart.worker", "--runtime", page]
        if bundle is not None:
            command += ["--model", os.path.abspath(os.fspath(bundle))]
        return cls(command, idle_unload_s=idle_unload_s, timeout_s=timeout_s)

    @property
    def pid(self) -> int | None:
        """Id of the process; None while there is none."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def __enter__(self) -> WorkerCaptioner:
        """The captioner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def caption(self, image: ImageInput, *, options: DecodeOptions | None = None) -> Caption:
        """Caption one image, as `Captioner.caption`; a path is read by the worker.

        Raises:
            WorkerError: the process ended, or did not answer in time; the next call starts another.
            TellapartError: what `Captioner.open` and `Captioner.caption` raise.
            ClosedError: after `close`.
        """
        found = self._ask({"image": to_image(image), "options": to_options(options)})
        return caption_from(found["caption"])

    def bag(
        self,
        images: Iterable[ImageInput],
        *,
        mode: BagMode = "plain",
        options: DecodeOptions | None = None,
    ) -> BagResult:
        """Caption look-alike images, as `Captioner.bag`.

        Raises:
            WorkerError: the process ended, or did not answer in time; the next call starts another.
            TellapartError: what `Captioner.open` and `Captioner.bag` raise.
            ClosedError: after `close`.
        """
        if isinstance(images, (str, bytes, os.PathLike)):
            raise UsageError(f"a bag is an iterable of images, got one {type(images).__name__}")
        records = [to_image(image) for image in images]
        return bag_from(self._ask({"images": records, "mode": mode, "options": to_options(options)})["bag"])

    def release(self) -> None:
        """End the process and free its memory; the next question starts another. Waits for one in flight."""
        with self._lock:
            self._end()

    def close(self) -> None:
        """End the process for good; waits for a question in flight, further calls do nothing."""
        self._closed = True
        self.release()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._closed:
                raise ClosedError("this WorkerCaptioner was closed; open another one")
            if self._idle is not None:
                self._idle.cancel()
            try:
                process = self._process
                if process is None or process.poll() is not None:
                    process = self._start()
                stdin = cast("IO[bytes]", process.stdin)
                self._count += 1
                name = str(self._count)
                try:
                    stdin.write(json.dumps({"id": name, **question}).encode("ascii") + b"\n")
                    stdin.flush()
                except OSError:
                    raise self._ended(process) from None
                found = self._next(process)
            except BaseException:
                self._kill()  # whatever it was busy with, its next line would answer an old question
                raise
            if self._idle_unload_s is not None:
                self._idle = threading.Timer(self._idle_unload_s, self.release)
                self._idle.daemon = True
                self._idle.start()
        if "error" in found:
            raise error_from(found["error"])
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        self._kill()
        rooms = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, rooms))},
            )
        except OSError as error:
            raise WorkerError(f"the worker {self._command[0]} does not start: {error}") from error
        # A queue of its own: what an old process still says goes to nobody.
        self._process, self._answers, self._words = process, queue.SimpleQueue(), deque(maxlen=20)
        for target, arguments in (
            (_pass_on, (process.stdout, self._answers)),
            (_keep, (process.stderr, self._words)),
        ):
            threading.Thread(target=target, args=arguments, name="tellapart-worker", daemon=True).start()
        first = self._next(process)
        if "fatal" in first:
            raise error_from(first["fatal"])
        return process

    def _next(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise WorkerError(
                f"the worker did not answer within {self._timeout_s:g} s and was ended; ask again, or raise "
                "timeout_s"
            ) from None
        if not line:
            raise self._ended(process)
        record: dict[str, Any] = json.loads(line)
        return record

    def _ended(self, process: subprocess.Popen[bytes]) -> WorkerError:
        try:
            status = process.wait(_END_S)
        except subprocess.TimeoutExpired:
            status = None
        how = f"status {status}" if status is None or status >= 0 else signal.Signals(-status).name
        words = f": {self._words[-1]}" if self._words else ""
        return WorkerError(
            f"the worker ended ({how}{words}) before it answered; ask again, which starts another"
        )

    def _end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        process = self._process
        if process is not None and process.stdin is not None:
            with suppress(OSError, subprocess.TimeoutExpired):  # then it is ended without being asked
                process.stdin.close()
                process.wait(_END_S)
        self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()


def _pass_on(lines: Any, answers: queue.SimpleQueue[bytes]) -> None:
    """Lines into a queue, and an empty one at the end."""
    with lines:
        for line in lines:
            answers.put(line)
    answers.put(b"")


def _keep(lines: Any, words: deque[str]) -> None:
    with lines:
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text:
                words.append(text)
