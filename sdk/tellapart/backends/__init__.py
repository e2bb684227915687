"""Runtimes: one `Session` per graph, opened by the backend that the options and the machine allow.

No runtime is imported before a session is asked for. A backend or provider that was asked for by name is
used or is an error; only "auto" chooses, and says why in the log at INFO.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import numpy.typing as npt

from tellapart.bundle import Bundle
from tellapart.errors import BackendError
from tellapart.types import RuntimeOptions

_LOG = logging.getLogger(__name__)

TARGET_OF = {"onnxruntime": "onnx", "openvino": "openvino", "coreml": "coreml"}
"""Backends by name, in the order in which "auto" tries them, and the target in a bundle's graph table that
each reads."""

_PACKAGE = {"onnxruntime": "onnxruntime", "openvino": "openvino", "coreml": "coremltools"}


class Session(Protocol):
    """One graph, ready to run; safe to run from several threads at once."""

    backend: str
    """Name of the backend, as in `RuntimeOptions.backend`."""

    providers: tuple[str, ...]
    """What computes, in the order of preference; never something that silently fell away."""

    threads: int
    """Threads that one run may use."""

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Compute all outputs.

        Args:
            feeds: an array for each input, by name.

        Returns:
            An array for each output, by name.

        Raises:
            BackendError: an input is missing or unknown, has a wrong shape or dtype, or the runtime failed.
            ClosedError: the session was closed.
        """

    def run_quietly(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]] | None:
        """As `run`, for inputs that the graph may refuse: None then, and nothing in any log.

        Raises:
            ClosedError: the session was closed.
        """
        try:
            return self.run(feeds)
        except BackendError:
            return None

    def close(self) -> None:
        """Give the memory back; further calls do nothing."""


def choose_backend(bundle: Bundle, runtime: RuntimeOptions) -> str:
    """Which backend will run a bundle, checked as far as possible without opening a graph.

    Args:
        bundle: an open bundle.
        runtime: what was asked for.

    Returns:
        A name out of `TARGET_OF`.

    Raises:
        BackendError: it does not run on this system, the bundle has no graphs for it, or a provider that was
            asked for is not in this installation.
        MissingExtraError: its package is not installed.
    """
    name, reason = _check_backend(bundle, runtime)
    module = _module(name)
    providers = module.choose_providers(runtime.providers)
    level = logging.INFO if runtime.backend == "auto" else logging.DEBUG
    version = module.runtime_version()
    _LOG.log(level, "backend %s %s on %s: %s", name, version, " then ".join(providers), reason)
    return name


def _check_backend(bundle: Bundle, runtime: RuntimeOptions) -> tuple[str, str]:
    """The backend's name, and why it was chosen."""
    if runtime.backend == "auto":
        return _first_able(bundle)
    name = runtime.backend
    if name == "coreml":  # before anybody is sent to export for it
        _module(name).check_system()
    if TARGET_OF[name] not in bundle.manifest.targets:
        raise BackendError(
            f"{bundle.name} has no graphs for {name}, only for {', '.join(bundle.manifest.targets)}; "
            f"export it again: tellapart export CHECKPOINT --target {TARGET_OF[name]}"
        )
    return name, "it was asked for"


def _first_able(bundle: Bundle) -> tuple[str, str]:
    """The first backend that has graphs in the bundle and can run here; else the first that has graphs."""
    able = [name for name, target in TARGET_OF.items() if target in bundle.manifest.targets]
    # Where none can, the first one will say why not, or how to install it.
    name = next((backend for backend in able if runs_here(backend)), able[0])
    notes = []
    for other in TARGET_OF:
        if other not in able:
            notes.append(f"the bundle has no graphs for {other}")
        elif other != name and runs_here(other):
            notes.append(f"{other} would be next")
        elif other != name:
            notes.append(
                "coreml needs macOS and coremltools" if other == "coreml" else f"{other} is not installed"
            )
    return name, "; ".join(notes)


def runs_here(name: str) -> bool:
    """Whether a backend's package is installed, on a system that it runs on."""
    return _is_installed(_PACKAGE[name]) and (name != "coreml" or bool(_module(name).is_mac()))


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # taken out of sight in this process, or half imported
        return False


def _module(name: str) -> Any:
    if name == "openvino":
        from tellapart.backends import ov

        return ov
    if name == "coreml":
        from tellapart.backends import coreml

        return coreml
    from tellapart.backends import ort

    return ort


def open_session(bundle: Bundle, role: str, runtime: RuntimeOptions) -> Session:
    """Open one graph of a bundle.

    Args:
        bundle: an open bundle.
        role: "vision", "decoder" or "text".
        runtime: backend, providers and threads.

    Raises:
        BundleError: the bundle has no graph of this role.
        BundleIntegrityError: the graph changed since the bundle was opened.
        BackendError: see `choose_backend`, or the runtime refuses the graph.
        MissingExtraError: the backend's package is not installed.
    """
    # Which backend was chosen is said once, when a bundle is opened, and not again for each graph.
    name, _ = _check_backend(bundle, runtime)
    session: Session = _module(name).open_session(bundle, role, runtime)
    return session


def open_greedy(
    bundle: Bundle, runtime: RuntimeOptions, *, start_id: int, end_id: int, banned_ids: Iterable[int]
) -> Session | None:
    """Open the decoder as one graph that makes a whole greedy caption, where the backend can.

    Args:
        bundle: an open bundle.
        runtime: backend, providers and threads.
        start_id: the token of the first step.
        end_id: the token that ends a caption.
        banned_ids: tokens that are never chosen.

    Returns:
        A session with the inputs and outputs of `onnx_loop.greedy_page`. None where it would not pay or is
        not possible: another runtime than onnxruntime on the CPU, a large decoder, fixed shapes.

    Raises:
        BundleIntegrityError: the graph changed since the bundle was opened.
        BackendError: see `choose_backend`, or the runtime refuses the graph.
        MissingExtraError: the backend's package is not installed.
    """
    name, _ = _check_backend(bundle, runtime)
    if name != "onnxruntime":
        return None
    session: Session | None = _module(name).open_greedy(
        bundle, runtime, start_id=start_id, end_id=end_id, banned_ids=banned_ids
    )
    return session
