"""Core ML, where there is macOS: a bundle's packages, run by Apple's own runtime through coremltools.

What differs from the other runtimes, and why:

- A package has fixed shapes, see `backends.fixed_shapes`. Its floats are float16, which coremltools takes and
  gives as float32; pixels go in as a picture of Pillow's.
- Core ML reads a copy of the package, made of bytes that were hashed a moment ago: coremltools writes into
  the package that it opens.
- One run at a time: Apple lets one thread at a time use a model.
- Inputs are copied into arrays that are never freed. coremltools 9.0 hands arrays over without a copy, and
  Core ML drops them about a second after the run, on a thread that does not hold Python's lock; an array that
  nobody else holds is freed there, and the process crashes (apple/coremltools#2827, #2829).
- Threads are Core ML's own affair.

Nothing here was run on a Mac yet: docs/apple.md says what was proved without one, and how to prove the rest.
"""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.backends import Session
from tellapart.backends.fixed_shapes import FixedSession, is_fixed, pad_id_of
from tellapart.backends.graph_files import first_line, verified_bytes
from tellapart.bundle import Bundle
from tellapart.errors import BackendError, ClosedError, MissingExtraError
from tellapart.manifest import GraphSpec, TensorSpec
from tellapart.types import RuntimeOptions

Array = npt.NDArray[Any]
Predict = Callable[[dict[str, Any]], Mapping[str, Any]]
"""As `MLModel.predict`: by name an array, or for pixels a picture of Pillow's -> arrays by name."""

UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")
"""What Core ML may compute on, by coremltools' names; its own choice among all of them first."""

SUFFIX = ".mlpackage"


def runtime_version() -> str:
    """Version of the installed coremltools.

    Raises:
        BackendError: this is no Mac.
        MissingExtraError: it is not installed.
    """
    check_system()
    return str(load_coremltools().__version__)


def choose_providers(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The compute units that were asked for, or all.

    Raises:
        BackendError: none of `UNITS`, or more than one; or this is no Mac.
    """
    check_system()
    unknown = [name for name in wanted if name not in UNITS]
    if unknown or len(wanted) > 1:
        raise BackendError(
            f"Core ML takes one of the compute units {', '.join(UNITS)}; "
            f"{', '.join(unknown or wanted)} was asked for. Name one of these, or leave the provider out"
        )
    return wanted or UNITS[:1]


def check_system() -> None:
    """Refuse what is no Mac.

    Raises:
        BackendError: it is none.
    """
    if not is_mac():
        raise BackendError(
            f"Core ML runs on macOS alone, and here is {platform.system() or 'another system'}; "
            "leave the backend out and take a bundle with graphs for onnxruntime (--target onnx)"
        )


def is_mac() -> bool:
    """Whether this system has Core ML."""
    return platform.system() == "Darwin"


def open_session(bundle: Bundle, role: str, runtime: RuntimeOptions) -> FixedSession:
    """Open the package of a role; see `backends.open_session`."""
    graph = bundle.graph(role, "coreml")
    providers = choose_providers(runtime.providers)
    if runtime.provider_options:
        raise BackendError("Core ML has no settings besides its compute units; leave provider_options out")
    predict = _open_package(bundle, graph, providers[0])
    return session_of(graph, predict, name=bundle.name, providers=providers, pad_id=pad_id_of(bundle, role))


def session_of(
    graph: GraphSpec, predict: Predict, *, name: str, providers: tuple[str, ...], pad_id: int = 0
) -> FixedSession:
    """A package behind the face of the other runtimes, whatever runs it.

    Args:
        graph: its page.
        predict: what runs it.
        name: of the bundle, for messages.
        providers: what computes.
        pad_id: what short texts are filled up with.

    Raises:
        BackendError: the page has free axes.
    """
    if not is_fixed(graph):
        raise BackendError(
            f"{graph.file} of {name} has free axes, and packages for Core ML have fixed shapes; export the "
            "checkpoint again: tellapart export CHECKPOINT --target coreml"
        )
    return FixedSession(CoremlSession(graph, predict, name=name, providers=providers), graph, pad_id=pad_id)


class CoremlSession(Session):
    """A package in its own fixed shapes; a `backends.Session`."""

    backend = "coreml"
    threads = 1

    def __init__(self, graph: GraphSpec, predict: Predict, *, name: str, providers: tuple[str, ...]) -> None:
        """Take the page, what runs it, the bundle's name and what computes."""
        self._graph, self._name, self.providers = graph, name, providers
        self._predict: Predict | None = predict
        self._lock = threading.Lock()
        self._inputs = {page.name: _take_buffer(page) for page in graph.inputs if not _is_picture(page)}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs, as float32; see `backends.Session.run`."""
        where = f"the {self._graph.role} graph of {self._name}"
        wanted = {page.name: page for page in self._graph.inputs}
        if set(feeds) != set(wanted):
            raise BackendError(f"{where} takes {', '.join(wanted)}, and was given {', '.join(feeds)}")
        for name, array in feeds.items():
            page = wanted[name]
            if array.shape != page.shape or array.dtype.kind != np.dtype(page.dtype).kind:
                raise BackendError(
                    f"{where} takes {name} as {page.dtype} {page.shape}, and was given {array.dtype} "
                    f"{array.shape}"
                )
        with self._lock:
            if self._predict is None:
                raise ClosedError(f"{where} was closed; open another")
            try:
                found = self._predict({name: self._as_input(name, array) for name, array in feeds.items()})
            except Exception as error:  # what coremltools passes on shares no base but this
                raise BackendError(f"Core ML failed in {where}: {first_line(error)}") from error
        return {page.name: _as_output(found, page, where) for page in self._graph.outputs}

    def close(self) -> None:
        """Let the model go, after the run that it is busy with; further calls do nothing."""
        with self._lock:
            self._predict = None
            for buffer in self._inputs.values():
                _give_buffer(buffer)
            self._inputs = {}

    def _as_input(self, name: str, array: Array) -> Any:
        if name not in self._inputs:
            from PIL import Image

            return Image.fromarray(array[0])
        self._inputs[name][...] = array
        return self._inputs[name]


def _is_picture(page: TensorSpec) -> bool:
    return page.dtype == "uint8"


def _as_output(found: Mapping[str, Any], page: TensorSpec, where: str) -> Array:
    array = np.asarray(found.get(page.name, ()), np.float32)
    if array.shape != page.shape:
        raise BackendError(
            f"{where} gave {page.name} as {array.shape}, and its manifest says {page.shape}; export the "
            "bundle again"
        )
    return array


_ALL_BUFFERS: list[Array] = []
_SPARE_BUFFERS: list[Array] = []
_BUFFERS = threading.Lock()


def _take_buffer(page: TensorSpec) -> Array:
    """An array for an input that lives as long as the process, see the top; one given back, or a new one."""
    shape = tuple(map(int, page.shape))
    # float16 would be copied by coremltools, and the copy be nobody's.
    dtype = np.dtype("float32" if np.dtype(page.dtype).kind == "f" else page.dtype)
    with _BUFFERS:
        for at, buffer in enumerate(_SPARE_BUFFERS):
            if (buffer.shape, buffer.dtype) == (shape, dtype):
                return _SPARE_BUFFERS.pop(at)
        _ALL_BUFFERS.append(np.zeros(shape, dtype))
        return _ALL_BUFFERS[-1]


def _give_buffer(buffer: Array) -> None:
    with _BUFFERS:
        _SPARE_BUFFERS.append(buffer)


def _open_package(bundle: Bundle, graph: GraphSpec, units: str) -> Predict:
    """Have Core ML compile and load a verified copy of a package.

    Raises:
        BackendError: no package, no room for the copy, or Core ML refuses it.
        BundleIntegrityError: a file of it changed since the bundle was opened.
    """
    parts = [path for path in bundle.manifest.files if path.startswith(f"{graph.file}/")]
    if not parts or not graph.file.endswith(SUFFIX):
        raise BackendError(f"{graph.file} of {bundle.name} is no {SUFFIX} folder; export the bundle again")
    folder = tempfile.mkdtemp(prefix="tellapart-coreml-")
    try:
        for part in parts:
            _write(Path(folder) / part, verified_bytes(bundle, part))
        model, refusal = _load_package(Path(folder) / graph.file, units)
        if refusal:
            raise BackendError(f"Core ML refuses {graph.file} of {bundle.name}: {refusal}")
    except BaseException:  # Ctrl-C too must not leave the copy behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    predict: Predict = model.predict
    return predict


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise BackendError(
            f"cannot make Core ML's copy of a package in {tempfile.gettempdir()}: {error.strerror}; make room"
            " there, or set TMPDIR"
        ) from error


def _load_package(package: Path, units: str) -> tuple[Any, str]:
    """The `MLModel`, and why Core ML does not run it; empty where it does."""
    coremltools = load_coremltools()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a refusal comes as one; it is asked for below
            model = coremltools.models.MLModel(
                str(package), compute_units=getattr(coremltools.ComputeUnit, units)
            )
    except Exception as error:  # what coremltools passes on shares no base but this
        return None, first_line(error)
    if model.__proxy__ is not None:
        return model, ""
    # coremltools keeps the reason for whoever predicts.
    if model._framework_error is not None:
        return None, first_line(model._framework_error)
    if find_spec("coremltools.libcoremlpython") is None:
        return (
            None,
            "coremltools was installed without its part for Core ML; take a Python that it has wheels for",
        )
    return None, f"it asks for a newer system than macOS {platform.mac_ver()[0]}"


def load_coremltools() -> Any:
    """The package, silent: it says for each part that it cannot use here, and of every version beside it.

    Raises:
        MissingExtraError: it is not installed.
        BackendError: it is installed and does not load.
    """
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import coremltools
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "coreml", "Packages for Core ML need coremltools, which is not installed"
        ) from error
    except ImportError as error:
        raise BackendError(f"coremltools is installed and does not load: {error}") from error
    return coremltools
