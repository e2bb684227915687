"""OpenVINO, held to the numbers of the float network.

What differs from its defaults, and why:

- float32 is float32: on processors with bfloat16 its default computes in that, silently, and is 1e-2 off.
- Its fused attention ("snippets") is off: version 2026.4 gives wrong numbers once the past of a decoder has
  grown beyond 15 tokens (errors of 2 to 15 in logits; off, they are within 1e-5).
- The vision graph is compiled for the number of images that comes, which on a device is one: with a free one,
  INT8 graphs crash the process (seen on small networks), and others are slower.
- One stream, no pinning: a device has other work to do. The text tower has a stream for each of the threads
  that the engine spreads texts over.
- An NPU gets none of these settings: it computes in float16 and takes graphs of fixed shapes alone.
- Graph and weights are read from bytes that were hashed a moment ago, not from paths that may have changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.backends import Session
from tellapart.backends.fixed_shapes import FixedSession, is_fixed, pad_id_of
from tellapart.backends.graph_files import check_names, first_line, verified_bytes
from tellapart.backends.threads import count_threads, threads_of
from tellapart.bundle import Bundle
from tellapart.errors import BackendError, ClosedError, MissingExtraError
from tellapart.manifest import GraphSpec
from tellapart.types import RuntimeOptions

_CPU, _NPU = "CPU", "NPU"
_MOST_SIZES = 3  # numbers of images that a vision graph is kept compiled for


def runtime_version() -> str:
    """Version of the installed OpenVINO.

    Raises:
        MissingExtraError: there is none.
        BackendError: it is installed and does not load.
    """
    return str(_load().__version__).split("-")[0]


def choose_providers(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The device that was asked for, or the CPU: which others there are is the user's to know.

    Raises:
        BackendError: one that is not in this machine, or more than one.
        MissingExtraError: OpenVINO is not installed.
    """
    have = tuple(_load().Core().available_devices)
    missing = [name for name in wanted if name not in have]
    if missing or len(wanted) > 1:
        raise BackendError(
            f"OpenVINO runs a graph on one device, and has {', '.join(have)} here; "
            f"{', '.join(missing or wanted)} was asked for. Name one of these, or leave the provider out"
        )
    return wanted or (_CPU,)


def open_session(bundle: Bundle, role: str, runtime: RuntimeOptions) -> Session:
    """Open the OpenVINO graph of a role; see `backends.open_session`."""
    graph = bundle.graph(role, "openvino")
    model = verified_bytes(bundle, graph.file)
    weights = verified_bytes(bundle, str(PurePosixPath(graph.file).with_suffix(".bin")))
    providers = choose_providers(runtime.providers)
    on_npu, fixed = providers[0].startswith(_NPU), is_fixed(graph)
    if on_npu and not fixed:
        raise BackendError(
            f"an NPU takes graphs of fixed shapes, and {graph.file} of {bundle.name} has free axes; export "
            "the checkpoint again: tellapart export CHECKPOINT --target openvino-npu"
        )
    threads = threads_of(bundle, graph, runtime)
    pad_id = pad_id_of(bundle, role) if fixed else 0
    streams = count_threads(runtime) if role == "text" else 1
    settings: dict[str, Any] = {} if on_npu else {"INFERENCE_PRECISION_HINT": "f32"}
    if providers == (_CPU,):
        settings |= {
            "SNIPPETS_MODE": "DISABLE",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads * streams,
            "ENABLE_CPU_PINNING": False,
        }
    settings |= runtime.provider_options.get(providers[0], {})
    try:
        core = _load().Core()
        read = core.read_model(model=model, weights=weights)

        def compile_for(batch: int) -> Any:
            if role == "vision":
                one = graph.inputs[0]
                read.reshape({one.name: [batch, *one.shape[1:]]})
            return core.compile_model(read, providers[0], settings)

        session = OvSession(compile_for, graph, name=bundle.name, providers=providers, threads=threads)
        return FixedSession(session, graph, pad_id=pad_id) if fixed else session
    except BackendError:
        raise
    except Exception as error:  # OpenVINO's exceptions share no base but this
        raise BackendError(f"OpenVINO refuses {graph.file} of {bundle.name}: {first_line(error)}") from error


class OvSession(Session):
    """A graph in OpenVINO; a `backends.Session`."""

    backend = "openvino"

    def __init__(
        self,
        compile_for: Callable[[int], Any],
        graph: GraphSpec,
        *,
        name: str,
        providers: tuple[str, ...],
        threads: int,
    ) -> None:
        """Check that the graph has the inputs and outputs that the manifest promises.

        Args:
            compile_for: a number of images -> `openvino.CompiledModel`; other graphs take any number.
            graph: its page.
            name: of the bundle.
            providers: devices.
            threads: that one run may use.
        """
        self._compile: Callable[[int], Any] | None = compile_for
        self._graph, self._name = graph, name
        self.providers, self.threads = providers, threads
        self._lock = threading.Lock()
        self._here = threading.local()  # a request has room for one run, so each thread has its own
        self._compiled: dict[int, Any] = {1: compile_for(1)}
        ports = {"inputs": self._compiled[1].inputs, "outputs": self._compiled[1].outputs}
        for what, want in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            check_names(name, graph, what, [_name_of(port) for port in ports[what]], want)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Compute all outputs; see `backends.Session.run`."""
        checked = self._checked(feeds)
        try:
            request = self._request(len(checked["pixels"]) if "pixels" in checked else 1)
            request.infer(checked)
            # A copy, as the next run writes over what the request holds.
            return {
                tensor.name: np.array(request.get_tensor(tensor.name).data) for tensor in self._graph.outputs
            }
        except ClosedError:
            raise
        except Exception as error:  # OpenVINO's exceptions share no base but this
            raise BackendError(
                f"OpenVINO failed in the {self._graph.role} graph of {self._name}: {first_line(error)}"
            ) from error

    def close(self) -> None:
        """Let the graph go; a run in another thread still ends well, as it holds its own reference."""
        with self._lock:
            self._compile = None
            self._compiled = {}
            self._here = threading.local()

    def _request(self, images: int) -> Any:
        """This thread's request for a number of images."""
        requests: dict[int, Any] = self._here.__dict__.setdefault("requests", {})
        if images in requests:
            return requests[images]
        with self._lock:
            if self._compile is None:
                raise ClosedError(f"the {self._graph.role} graph of {self._name} was closed; open another")
            if images not in self._compiled:
                if len(self._compiled) == _MOST_SIZES:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[images] = self._compile(images)
            requests.clear()  # of sizes that come no more; another is quickly made
            requests[images] = self._compiled[images].create_infer_request()
        return requests[images]

    def _checked(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The arrays as OpenVINO wants them; it would take an old value for a missing one, and cast others.

        Raises:
            BackendError: a name, dtype or number of axes that the graph does not have.
        """
        where = f"the {self._graph.role} graph of {self._name}"
        wanted = {tensor.name: tensor for tensor in self._graph.inputs}
        if set(feeds) != set(wanted):
            raise BackendError(f"{where} takes {', '.join(wanted)}, and was given {', '.join(feeds)}")
        found = {}
        for name, array in feeds.items():
            tensor = wanted[name]
            if array.dtype != tensor.dtype or array.ndim != len(tensor.shape):
                raise BackendError(
                    f"{where} takes {name} as {tensor.dtype} {tensor.shape}, and was given {array.dtype} "
                    f"{array.shape}"
                )
            # A view, as numpy has two types of 64-bit integers and OpenVINO knows one of them.
            found[name] = np.ascontiguousarray(array).view(np.dtype(tensor.dtype))
        return found


def _name_of(port: Any) -> str:
    return str(port.get_any_name())


def _load() -> Any:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "openvino", "Running a bundle with OpenVINO needs its package, which is not installed"
        ) from error
    except ImportError as error:  # a library that does not fit this system
        raise BackendError(f"OpenVINO is installed and does not load: {error}") from error
    return openvino
