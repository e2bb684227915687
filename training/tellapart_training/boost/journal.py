"""The journal of a run that pays for its requests: an answer is on disk before anybody uses it.

One JSON object a line, appended and synced. A run that is killed at any moment and started again walks the
same images, finds the answers here and asks only for what is missing; checks are applied anew, so they may
be changed between runs at no cost. A line that a kill cut in two is dropped. What no journal can know is
the fate of requests that were under way at that moment: they are counted as interrupted, as spent, and
asked again.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tellapart.errors import DataError
from tellapart_training.boost.chat import Answer

Tokens = tuple[int, int]
"""Of input and of output."""


class Journal:
    """Answers of a run, on disk; safe from many threads, refused to a second process.

    Args:
        path: of the file; made when absent.
        run: what the answers depend on: model, prompts, decoding. Another run's journal is refused.

    Raises:
        DataError: a damaged journal, one of another run, or one at work in another process.
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path = path
        self.faults: Counter[str] = Counter()
        """Of earlier runs and this one."""
        self.spent: list[Tokens] = []
        """What earlier runs paid or may have paid."""
        # Where each answer lies: of a million answers the texts stay on disk.
        self._places: dict[str, tuple[int, int]] = {}
        self._sent: dict[str, Tokens] = {}
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise DataError(f"cannot write the journal {path}: {error.strerror}") from error
        try:
            _claim(self._file, path)
            self._end = self._read(run)
            self._file.truncate(self._end)
            self._synced = self._end
            if self._end == 0:
                self._append({"run": run}, sync=True)
        except BaseException:
            self._file.close()
            raise
        for key, most in self._sent.items():
            self.fault(key, "interrupted", most)
            self.spent.append(most)
        self._sent.clear()

    def _read(self, run: dict[str, Any]) -> int:
        """Take in what is there; how many bytes of it are whole lines."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                if number == 1 and entry["run"] != json.loads(json.dumps(run)):
                    raise DataError(
                        f"{self.path} is the journal of a run with another model, prompt or "
                        f"decoding: give another "
                        f"--journal, or delete it to pay for everything again"
                    )
                self._take(entry, (end, len(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{self.path}:{number}: not a line of a journal ({error})") from error
            end += len(line)
        return end

    def _take(self, entry: dict[str, Any], place: tuple[int, int]) -> None:
        if "sent" in entry:
            self._sent[entry["sent"]] = _tokens(entry["most"])
        elif "answer" in entry:
            self._places[entry["answer"]] = place
            self._sent.pop(entry["answer"], None)
            self.spent.append(_tokens(entry["tokens"]))
        elif "fault" in entry:
            self.faults[entry["fault"]] += 1
            self._sent.pop(entry["key"], None)
            self.spent.append(_tokens(entry["tokens"]))

    def __enter__(self) -> Journal:
        """The journal itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()

    def __len__(self) -> int:
        """How many answers there are."""
        return len(self._places)

    def find(self, key: str) -> Answer | None:
        """The answer to a request, if it was ever given."""
        place = self._places.get(key)
        if place is None:
            return None
        with self._lock:
            self._file.seek(place[0])
            line = self._file.read(place[1])
        entry = json.loads(line)
        return Answer(entry["text"], entry["finish"], *_tokens(entry["tokens"]))

    def send(self, key: str, most: Tokens) -> None:
        """Note that a request goes out now, and what it may cost."""
        self._append({"sent": key, "most": most})

    def answer(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns."""
        tokens = (answer.input_tokens, answer.output_tokens)
        entry = {"answer": key, "text": answer.text, "finish": answer.finish, "tokens": tokens}
        self._places[key] = self._append(entry, sync=True)

    def fault(self, key: str, kind: str, spent: Tokens) -> None:
        """Note that a request failed, and what it may have cost all the same."""
        self._append({"fault": kind, "key": key, "tokens": spent})
        with self._lock:
            self.faults[kind] += 1

    def _append(self, entry: dict[str, Any], *, sync: bool = False) -> tuple[int, int]:
        line = json.dumps(entry).encode("ascii") + b"\n"
        with self._lock:
            place = (self._end, len(line))
            self._file.write(line)
            # Flushed, it outlives this process; synced, the machine's power too.
            self._file.flush()
            self._end += len(line)
        if sync:
            self._sync(sum(place))
        return place

    def _sync(self, end: int) -> None:
        """Sync up to `end`; one sync serves every thread that waited for it."""
        with self._sync_lock:
            if self._synced < end:
                reached = self._end
                os.fsync(self._file.fileno())
                self._synced = reached


def _tokens(pair: Any) -> Tokens:
    read, written = pair
    return int(read), int(written)


def _claim(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps a second process out
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DataError(
            f"{path} is in use by another run: wait for it, or give --shard and --journal"
        ) from error
