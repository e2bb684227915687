"""What works here and what does not, each with the one command that mends it.

Each check does the thing itself in small, rather than look for its parts: a bundle is opened and hashed, a
photo is decoded, a caption is made.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tellapart.backends import runs_here
from tellapart.cache_folder import default_cache_dir
from tellapart.errors import TellapartError
from tellapart.types import RuntimeOptions

__all__ = ["Check", "run_checks"]

EXTRAS = {
    "app": ("gradio",),
    "desktop": ("PySide6",),
    "openvino": ("openvino",),
    "coreml": ("coremltools",),
    "export": ("torch", "onnx", "onnxscript", "transformers"),
    "quantize": ("onnx",),
    "train": ("torch", "accelerate", "transformers", "safetensors", "peft"),
}
"""What each extra brings that can be looked for by name."""

OLDEST_ONNXRUNTIME = (1, 23)
"""The first with 8-bit word tables, see pyproject.toml."""

FAST_INT8 = frozenset({"avx512_vnni", "avx_vnni", "asimddp", "i8mm", "amx_int8"})


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that works or does not."""

    name: str
    works: bool
    finding: str
    """One sentence, without a final stop."""

    mend: str | None = None
    """The one command that mends it; None where it works, or where no command does."""

    needed: bool = True
    """Whether captions need it; extras do not."""


def run_checks(
    bundle: Path | None, *, runtime: RuntimeOptions, cpu_flags: tuple[str, ...]
) -> tuple[Check, ...]:
    """Try everything, in the order in which it is needed; takes about as long as a caption.

    Args:
        bundle: what to try; None is the embedded one.
        runtime: as asked for on the command line.
        cpu_flags: of the processor, as `examine_machine` finds them.
    """
    return (
        _runtime(),
        _pictures(),
        _bundle(bundle),
        _caption(bundle, runtime),
        _int8(cpu_flags),
        _cache(),
        *_extras(),
    )


def _runtime() -> Check:
    name = "runtime"
    installed = [version for version in ("onnxruntime", "onnxruntime-gpu") if _version(version)]
    if len(installed) > 1:
        return Check(
            name=name,
            works=False,
            finding="onnxruntime and onnxruntime-gpu are both installed, and one has overwritten the other",
            mend='pip uninstall -y onnxruntime onnxruntime-gpu && pip install "tellapart[cpu]"',
        )
    try:
        from tellapart.backends.ort import runtime_version

        version = runtime_version()
    except TellapartError as error:
        return Check(name=name, works=False, finding=_sentence(error), mend='pip install "tellapart[cpu]"')
    if _numbers(version) < OLDEST_ONNXRUNTIME:
        wanted = ".".join(map(str, OLDEST_ONNXRUNTIME))
        return Check(
            name=name,
            works=False,
            finding=f"onnxruntime {version} cannot read 8-bit word tables, which need {wanted}",
            mend=f'pip install --upgrade "onnxruntime>={wanted}"',
        )
    return Check(name=name, works=True, finding=f"onnxruntime {version} loads")


def _pictures() -> Check:
    name, mend = "pictures", 'pip install --force-reinstall "pillow>=10.1"'
    try:
        from PIL import Image

        from tellapart.image import load_image

        stream = io.BytesIO()
        Image.new("RGB", (16, 16), (200, 40, 40)).save(stream, "JPEG")
        load_image(stream.getvalue())
    except (ImportError, OSError, TellapartError) as error:
        return Check(name=name, works=False, finding=f"a JPEG cannot be read: {_sentence(error)}", mend=mend)
    return Check(name=name, works=True, finding=f"Pillow {_version('pillow')} reads a JPEG")


def _bundle(bundle: Path | None) -> Check:
    from tellapart.bundle import open_bundle

    embedded = "pip install --force-reinstall --no-deps tellapart"
    try:
        with open_bundle(bundle) as opened:
            manifest = opened.manifest
            size = sum(entry.bytes for entry in manifest.files.values()) / 2**20
            finding = f"{manifest.name}, {size:.1f} MiB, every hash as its manifest says"
    except TellapartError as error:
        mend = embedded if bundle is None else None  # of somebody's own bundle there is no other copy here
        return Check(name="model", works=False, finding=_sentence(error), mend=mend)
    return Check(name="model", works=True, finding=finding)


def _caption(bundle: Path | None, runtime: RuntimeOptions) -> Check:
    from tellapart.captioner import Captioner

    name = "caption"
    try:
        import numpy as np

        with Captioner.open(bundle, runtime=runtime) as captioner:
            caption = captioner.caption(np.full((64, 64, 3), 128, np.uint8))
    except TellapartError as error:
        return Check(name=name, works=False, finding=_sentence(error))
    spent_ms = sum(caption.elapsed_ms.values())
    return Check(name=name, works=True, finding=f"one was made in {spent_ms:.0f} ms, opening included")


def _int8(cpu_flags: tuple[str, ...]) -> Check:
    fast = [flag for flag in cpu_flags if flag in FAST_INT8]
    if fast:
        return Check(name="8-bit", works=True, finding=f"the processor multiplies 8-bit numbers: {fast[0]}")
    return Check(
        name="8-bit",
        works=False,
        finding="the processor is not known to multiply 8-bit numbers: captions are slower, some differ",
        needed=False,
    )


def _cache() -> Check:
    folder = default_cache_dir()
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return Check(
            name="cache",
            works=False,
            finding=f"{folder} cannot be written ({error.strerror}), so nothing is remembered",
            mend='export XDG_CACHE_HOME="$(mktemp -d)"',
            needed=False,
        )
    return Check(name="cache", works=True, finding=f"{folder} can be written")


def _extras() -> Iterator[Check]:
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if not _is_there(module)]
        if missing:
            finding = f"needs {', '.join(missing)}, not installed"
            mend = f'pip install "tellapart[{extra}]"'
            yield Check(name=extra, works=False, finding=finding, mend=mend, needed=False)
        else:
            finding = "what it needs is installed"
            if extra == "coreml" and not runs_here("coreml"):
                finding = "packages can be made here, and run on a Mac alone"
            yield Check(name=extra, works=True, finding=finding, needed=False)


def _is_there(module: str) -> bool:
    find: Callable[[str], object] = find_spec
    try:
        return find(module) is not None
    except (ImportError, ValueError):  # taken out of sight in this process, or half imported
        return False


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """1.23.2 as (1, 23, 2); whatever follows the numbers is left out."""
    found: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def _sentence(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__
