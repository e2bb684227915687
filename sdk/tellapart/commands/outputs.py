"""Where captions go: lines, JSON, a JSON-lines file, or a small file beside each image.

A run can be killed at any moment. The JSON-lines file then holds whole lines, with at worst one broken at
its end, which `--resume` drops; a sidecar is written under another name and renamed, so it is whole or
absent. Neither replaces a file that it finds, unless `--overwrite` says so: a `photo.txt` may be the work
of somebody's evening.

Lines of a file and JSON sidecars carry one key more than JSON on stdout: "model", the SHA-256 of the
bundle's manifest; XMP sidecars carry it as a property. `--resume` refuses to mix models, and tries images
again that failed before.

A disk that fills up ends the run with an `OutputError`: the line that did not fit is taken back, all before
it stay, and `--resume` goes on once there is room.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tellapart.errors import DataError, ImageError, OutputError, UsageError
from tellapart.types import Caption, UnsureCaption
from tellapart.xmp import alt_text_xmp, model_of_xmp

__all__ = [
    "CaptionSink",
    "JsonLinesFile",
    "JsonOut",
    "Lines",
    "Sidecars",
    "caption_record",
    "failure_record",
    "spoken",
]


def caption_record(image: str, caption: Caption) -> dict[str, Any]:
    """One caption as the contract's JSON; "alternatives" only where asked for, "unsure" only where it is."""
    record: dict[str, Any] = {
        "image": image,
        "caption": caption.text,
        "mean_logprob": round(caption.mean_logprob, 6),
        "confidence": None if caption.confidence is None else round(caption.confidence, 6),
        "truncated": caption.truncated,
        "elapsed_ms": {stage: round(value, 3) for stage, value in caption.elapsed_ms.items()},
    }
    if isinstance(caption, UnsureCaption):
        record["unsure"] = True
    if caption.alternatives:
        record["alternatives"] = [
            {
                "caption": other.text,
                "mean_logprob": round(other.mean_logprob, 6),
                "truncated": other.truncated,
            }
            for other in caption.alternatives
        ]
    return record


def spoken(caption: Caption) -> str:
    """The text for people; what the model is unsure of says so."""
    return f"(unsure) {caption.text}" if isinstance(caption, UnsureCaption) else caption.text


def failure_record(image: str, error: ImageError) -> dict[str, Any]:
    """One image that failed, as the contract's JSON."""
    return {"image": image, "error": {"type": type(error).__name__, "message": str(error)}}


def dump(record: dict[str, Any]) -> str:
    """One record as one line of UTF-8, without its end.

    A file name that is no valid text is escaped as JSON allows, and comes back the same.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(record, allow_nan=False)
    return line


def write_atomically(path: Path, content: str) -> None:
    """The whole file under another name, then one rename; nothing is left behind when that fails.

    Raises:
        OutputError: a full disk, a folder that may not be written.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_text(content, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _not_written(path, error) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def append_whole(path: Path, line: bytes) -> None:
    """One line at the end of a file, all of it or nothing; no buffer holds it when the process is killed.

    Raises:
        OutputError: a full disk, a file that may not be written.
    """
    try:
        with path.open("ab", buffering=0) as stream:
            before = stream.tell()
            try:
                left = memoryview(line)
                while left:  # a disk with little room takes a part, and says so at the next try
                    left = left[stream.write(left) :]
            except BaseException:
                stream.truncate(before)
                raise
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}. What was written before is whole; make room, "
        "or name another place, and go on with --resume"
    )


class CaptionSink(Protocol):
    """Takes captions one by one, in the order of the images."""

    def pending(self, images: Sequence[Path]) -> list[Path]:
        """The images that are still to be done; called once, before the first caption."""

    def caption(self, image: Path, caption: Caption) -> None:
        """Take one caption."""

    def failure(self, image: Path, error: ImageError) -> None:
        """Take one image that failed; stderr names it in any case."""


class Lines:
    """`path: caption` on stdout; further captions of an image are numbered below it."""

    def pending(self, images: Sequence[Path]) -> list[Path]:
        """All of them."""
        return list(images)

    def caption(self, image: Path, caption: Caption) -> None:
        """Print the caption."""
        print(f"{image}: {spoken(caption)}", flush=True)
        for place, other in enumerate(caption.alternatives, start=2):
            print(f"    {place}. {other.text}", flush=True)

    def failure(self, image: Path, error: ImageError) -> None:
        """Nothing on stdout."""


class JsonOut:
    """One JSON object a line on stdout, failures among them."""

    def pending(self, images: Sequence[Path]) -> list[Path]:
        """All of them."""
        return list(images)

    def caption(self, image: Path, caption: Caption) -> None:
        """Print the record."""
        print(dump(caption_record(str(image), caption)), flush=True)

    def failure(self, image: Path, error: ImageError) -> None:
        """Print the record of the failure."""
        print(dump(failure_record(str(image), error)), flush=True)


class JsonLinesFile:
    """One JSON object a line at the end of a file, each line written whole."""

    def __init__(self, path: Path, *, model: str, resume: bool, overwrite: bool) -> None:
        """Read what a run before this one left, where it goes on.

        Args:
            path: the file; its folder must exist.
            model: hash of the bundle that captions now, 64 hexadecimal digits.
            resume: go on in a file that is there.
            overwrite: begin a file that is there anew.

        Raises:
            UsageError: the file is there and neither was said, its folder is absent, or another model
                made it.
            DataError: a line of it is not one of ours.
        """
        self._path, self._model = path, model
        self._done: frozenset[str] = frozenset()
        if not path.parent.is_dir():
            raise UsageError(f"the folder of {path} does not exist; make it first")
        if path.exists() and resume:
            kept = self._keep_good_lines()
            self._done = frozenset(record["image"] for record in kept)
        elif path.exists() and not overwrite:
            raise UsageError(f"{path} exists; add --resume to go on in it or --overwrite to begin anew")
        else:
            write_atomically(path, "")

    def pending(self, images: Sequence[Path]) -> list[Path]:
        """Those without a caption in the file."""
        return [image for image in images if str(image) not in self._done]

    def caption(self, image: Path, caption: Caption) -> None:
        """Append the record."""
        self._append(caption_record(str(image), caption))

    def failure(self, image: Path, error: ImageError) -> None:
        """Append the record of the failure."""
        self._append(failure_record(str(image), error))

    def _append(self, record: dict[str, Any]) -> None:
        line = dump({**record, "model": self._model}) + "\n"
        append_whole(self._path, line.encode("utf-8"))

    def _keep_good_lines(self) -> list[dict[str, Any]]:
        """Captions of the file; failures and a broken last line are taken out of it."""
        content = self._path.read_bytes()
        *lines, rest = content.split(b"\n")
        records = [self._parse(line, number) for number, line in enumerate(lines, start=1)]
        kept = [record for record in records if "caption" in record]
        if rest or len(kept) < len(records):
            write_atomically(self._path, "".join(dump(record) + "\n" for record in kept))
        return kept

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("image"), str):
            raise DataError(
                f"{self._path}, line {number}: expected a caption that tellapart wrote; "
                "name another file, or add --overwrite in place of --resume"
            )
        if record.get("model") != self._model:
            raise UsageError(
                f"{self._path}, line {number} was made by the model {str(record.get('model'))[:12]} and this "
                f"is {self._model[:12]}; name another file, or add --overwrite in place of --resume"
            )
        return record


class Sidecars:
    """A small file beside each image: `photo.jpg` gets `photo.txt`, `photo.json` or `photo.jpg.xmp`."""

    def __init__(self, kind: str, *, model: str, resume: bool, overwrite: bool) -> None:
        """Remember what to write.

        Args:
            kind: "txt", the caption and nothing else; "json", the record with the model's hash; or "xmp", the
                caption as alt text for photo managers, see `tellapart.xmp`.
            model: hash of the bundle that captions now.
            resume: pass over images that have theirs. Text carries no model, so with "txt" nobody can
                tell whose caption it is.
            overwrite: replace what is there.
        """
        self._kind, self._model, self._resume, self._overwrite = kind, model, resume, overwrite

    def pending(self, images: Sequence[Path]) -> list[Path]:
        """Those whose sidecar is to be written.

        Raises:
            UsageError: two images would share a sidecar, one is in the way, or another model made it.
        """
        owners = {image: image for image in images}  # an image is never its own sidecar, nor another's
        for image in images:
            sidecar = self._beside(image)
            other = owners.setdefault(sidecar, image)
            if other != image or sidecar == image:
                raise UsageError(
                    f"{sidecar}, the sidecar of {image}, would also be {other}'s; rename one image"
                )
        if self._kind == "xmp":
            self._keep_others_xmp(images)
        return [image for image in images if self._overwrite or not self._is_done(image)]

    def caption(self, image: Path, caption: Caption) -> None:
        """Write the sidecar, whole or not at all."""
        text = spoken(caption)
        if self._kind == "json":
            text = dump({**caption_record(str(image), caption), "model": self._model})
        if self._kind == "xmp":
            text = alt_text_xmp(text, model=self._model).rstrip("\n")
        write_atomically(self._beside(image), text + "\n")

    def failure(self, image: Path, error: ImageError) -> None:
        """No file: an image without its sidecar is one that `--resume` tries again."""

    def _beside(self, image: Path) -> Path:
        # Photo managers keep the whole name, so that a raw file and its JPEG have one each.
        return (
            image.with_name(f"{image.name}.xmp")
            if self._kind == "xmp"
            else image.with_suffix(f".{self._kind}")
        )

    def _keep_others_xmp(self, images: Sequence[Path]) -> None:
        """An XMP file of another program holds its edits, which even --overwrite must not cost anybody."""
        for image in images:
            sidecar = self._beside(image)
            if sidecar.exists() and model_of_xmp(sidecar.read_bytes()) is None:
                raise UsageError(
                    f"{sidecar} was written by another program, or by hand, and is never replaced; "
                    "caption this image with --sidecar txt or json, or move the file away"
                )

    def _is_done(self, image: Path) -> bool:
        sidecar = self._beside(image)
        if not sidecar.exists():
            return False
        if not self._resume:
            raise UsageError(f"{sidecar} exists; add --resume to keep it or --overwrite to replace it")
        if self._kind != "txt":
            model = self._model_of(sidecar)
            if model != self._model:
                raise UsageError(
                    f"{sidecar} was not made by the model {self._model[:12]}; "
                    "move it away, or add --overwrite in place of --resume"
                )
        return True

    def _model_of(self, sidecar: Path) -> str | None:
        if self._kind == "xmp":
            return model_of_xmp(sidecar.read_bytes())
        try:
            model = json.loads(sidecar.read_bytes()).get("model")
        except (ValueError, AttributeError):
            return None
        return model if isinstance(model, str) else None


def say(text: str) -> None:
    """One line on stderr under our name."""
    print(f"tellapart: {text}", file=sys.stderr, flush=True)
