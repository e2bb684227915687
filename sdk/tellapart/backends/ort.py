"""onnxruntime, tuned for a device that has other work to do.

What differs from its defaults, and why:

- No thread spins. Idle workers of two sessions otherwise fight for the same cores: on two cores the compact
  model ran 1.4 to 2.3 times faster without, and an idle process costs nothing.
- Threads are counted per graph, see `tellapart.backends.threads`: a small decoder's step is too small to
  share, and several texts are better spread over several runs.
- Vision and text have no arena, which would keep their largest run for ever. The decoder has one: its steps
  are small, and without it the ever changing sizes leave the heap in pieces (8 % slower and 8 MiB more).
- No IO binding: with arrays on the CPU it was slower than a plain run (docs/runtime.md).
- The graph is read from bytes that were hashed a moment ago, not from a path that may have changed since.
  Tensors outside the graph must lie in files that the manifest lists.
- Another provider than the CPU's gets the vision graph for one image, as the SDK looks at one at a time:
  TensorRT builds an engine for each range of shapes, and QNN passes over operators whose shapes are free.
- Its own log says errors only; everything that goes wrong arrives here as an exception.
"""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt

from tellapart.backends.graph_files import check_names, first_line, verified_bytes
from tellapart.backends.onnx_files import external_paths
from tellapart.backends.onnx_loop import greedy_model, greedy_page
from tellapart.backends.threads import threads_of
from tellapart.bundle import Bundle
from tellapart.errors import (
    BackendError,
    BundleIntegrityError,
    ClosedError,
    MissingExtraError,
)
from tellapart.manifest import GraphSpec
from tellapart.types import RuntimeOptions

_LOG = logging.getLogger(__name__)
_CPU = "CPUExecutionProvider"
_MOST_LOOPED_BYTES = 32 * 1024 * 1024  # of larger decoders a step is so long that a run's own cost is nothing
_RECORD_PLACES = "session.record_ep_graph_assignment_info"
_ERRORS_ONLY, _FATAL_ONLY = 3, 4  # onnxruntime's scale: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


def runtime_version() -> str:
    """Version of the installed onnxruntime.

    Raises:
        MissingExtraError: there is none.
        BackendError: it is installed and does not load.
    """
    return str(_load().__version__)


def available_providers() -> tuple[str, ...]:
    """Execution providers that the installed onnxruntime was built with, best first.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        BackendError: it is installed and does not load.
    """
    return tuple(_load().get_available_providers())


def choose_providers(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The providers that were asked for, or the CPU: quantized graphs are made for it.

    Raises:
        BackendError: one that was asked for is not in this installation; the message lists what is.
        MissingExtraError: onnxruntime is not installed.
    """
    have = available_providers()
    missing = [name for name in wanted if name not in have]
    if missing:
        raise BackendError(
            f"onnxruntime has no provider {missing[0]!r} here; it has {', '.join(have)}. Use one of "
            'these, or install a build that has it, for NVIDIA cards: pip install "tellapart[cuda]"'
        )
    return wanted or (_CPU,)


def open_session(bundle: Bundle, role: str, runtime: RuntimeOptions) -> OrtSession:
    """Open the ONNX graph of a role; see `backends.open_session`."""
    graph = bundle.graph(role, "onnx")
    model = verified_bytes(bundle, graph.file)
    options = session_options(role, threads_of(bundle, graph, runtime), runtime)
    outside = external_paths(model)
    for location in outside:
        verified_bytes(bundle, _listed_path(bundle, graph, location))
    if outside:
        folder = (bundle.root / graph.file).parent
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return _start(model, graph, bundle, options, runtime)


def open_greedy(
    bundle: Bundle, runtime: RuntimeOptions, *, start_id: int, end_id: int, banned_ids: Iterable[int]
) -> OrtSession | None:
    """Open the decoder as one graph that makes a whole greedy caption; see `backends.open_greedy`."""
    graph = bundle.graph("decoder", "onnx")
    # Anywhere but on the CPU each turn of a loop is a word between two processors.
    if choose_providers(runtime.providers) != (_CPU,):
        return None
    if bundle.manifest.files[graph.file].bytes > _MOST_LOOPED_BYTES:
        return None
    model = verified_bytes(bundle, graph.file)
    if external_paths(model):
        return None
    looped = greedy_model(model, graph, start_id=start_id, end_id=end_id, banned_ids=banned_ids)
    if looped is None:
        return None
    options = session_options("decoder", threads_of(bundle, graph, runtime), runtime)
    return _start(looped, greedy_page(graph), bundle, options, runtime)


def _start(
    model: bytes, graph: GraphSpec, bundle: Bundle, options: Any, runtime: RuntimeOptions
) -> OrtSession:
    """A session on exactly the providers that were asked for."""
    providers = choose_providers(runtime.providers)
    asked = [(name, dict(runtime.provider_options.get(name, {}))) for name in providers]
    if providers != (_CPU,):
        options.add_session_config_entry(_RECORD_PLACES, "1")
        if graph.role == "vision":
            for axis in {size for page in graph.inputs for size in page.shape if isinstance(size, str)}:
                options.add_free_dimension_override_by_name(axis, 1)
    ort = _load()
    try:
        # Its own fallback would print the reason on stdout, and go on with the CPU.
        session = ort.InferenceSession(model, sess_options=options, providers=asked, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base but this
        raise BackendError(
            f"onnxruntime refuses {graph.file} of {bundle.name}: {first_line(error)}"
        ) from error
    used = tuple(session.get_providers())
    # It falls back to the CPU with a log line only when a provider's library does not load.
    lost = [name for name in providers if name not in used]
    if lost:
        raise BackendError(
            f"onnxruntime could not start {lost[0]} and would have used {', '.join(used)}; check its "
            "drivers, or leave the provider out"
        )
    _check_places(session, graph, providers)
    threads = int(options.intra_op_num_threads)
    return OrtSession(session, graph, name=bundle.name, providers=used, threads=threads)


def _check_places(session: Any, graph: GraphSpec, providers: tuple[str, ...]) -> None:
    """Tell where the operators of a graph run; a provider can be there and take none of them.

    Raises:
        BackendError: none runs where it was asked for.
    """
    if providers == (_CPU,) or not hasattr(session, "get_provider_graph_assignment_info"):
        return  # onnxruntime tells since 1.24
    places = Counter[str]()
    for part in session.get_provider_graph_assignment_info():
        places[part.ep_name] += len(part.get_nodes())
    found = ", ".join(f"{count} on {name}" for name, count in places.most_common())
    if places and not places.keys() & set(providers):
        raise BackendError(
            f"{', '.join(providers)} can run no operator of {graph.file}: {found}. Try the float bundle, or "
            f"allow this by naming {next(iter(places))} after it"
        )
    _LOG.info("operators of %s: %s", graph.file, found)


class OrtSession:
    """A graph in onnxruntime; a `backends.Session`."""

    backend = "onnxruntime"

    def __init__(
        self, session: Any, graph: GraphSpec, *, name: str, providers: tuple[str, ...], threads: int
    ) -> None:
        """Check that the graph has the inputs and outputs that the manifest promises."""
        self._session: Any = session
        self._graph, self._name = graph, name
        self.providers, self.threads = providers, threads
        self._outputs = [tensor.name for tensor in graph.outputs]
        for what, have, want in (
            ("inputs", session.get_inputs(), graph.inputs),
            ("outputs", session.get_outputs(), graph.outputs),
        ):
            check_names(name, graph, what, [tensor.name for tensor in have], want)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Compute all outputs; see `backends.Session.run`."""
        session = self._session
        if session is None:
            raise ClosedError(f"the {self._graph.role} graph of {self._name} was closed; open another")
        try:
            values = session.run(self._outputs, dict(feeds))
        except Exception as error:  # onnxruntime's exceptions share no base but this
            raise BackendError(
                f"onnxruntime failed in the {self._graph.role} graph of {self._name}: {first_line(error)}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))

    def run_quietly(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]] | None:
        """As `run`, and None where the graph refuses; see `backends.Session.run_quietly`."""
        session = self._session
        if session is None:
            raise ClosedError(f"the {self._graph.role} graph of {self._name} was closed; open another")
        options = _load().RunOptions()
        options.log_severity_level = _FATAL_ONLY
        try:
            values = session.run(self._outputs, dict(feeds), options)
        except Exception:  # onnxruntime's exceptions share no base but this
            return None
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Let the session go; a run in another thread still ends well, as it holds its own reference."""
        self._session = None


def _load() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "cpu", "Running a bundle needs onnxruntime, which is not installed"
        ) from error
    except ImportError as error:  # a library that does not fit this system
        raise BackendError(f"onnxruntime is installed and does not load: {error}") from error
    return onnxruntime


def session_options(role: str, threads: int, runtime: RuntimeOptions) -> Any:
    """An `onnxruntime.SessionOptions` as the top of the module says.

    Args:
        role: "vision", "decoder" or "text".
        threads: inside the graph.
        runtime: whether they spin.
    """
    ort = _load()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = options.enable_mem_pattern = role == "decoder"
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if runtime.spin else "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _listed_path(bundle: Bundle, graph: GraphSpec, location: str) -> str:
    path = posixpath.normpath(posixpath.join(posixpath.dirname(graph.file), location))
    if posixpath.isabs(location) or "\\" in location or path not in bundle.manifest.files:
        raise BundleIntegrityError(
            f"{bundle.name}: {graph.file} wants its numbers from {location!a}, which the manifest does not "
            "list; fetch or export the bundle again",
            bundle=bundle.name,
        )
    return path
