"""Runtimes: one `Session` per graph, opened by the backend that the options and the machine allow.

No runtime is imported before a session is asked for. A backend or provider that was asked for by name is
used or is an error; only "auto" chooses, and says why in the log at INFO.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

from tellapart.bundle import Bundle
from tellapart.errors import BackendError
from tellapart.types import RuntimeOptions

_LOG = logging.getLogger(__name__)

TARGET_OF = {"onnxruntime": "onnx", "openvino": "openvino", "coreml": "coreml"}
"""Backends by name, and the target in a bundle's graph table that each reads."""

IMPLEMENTED = ("onnxruntime",)
"""Backends that this version has; the others of `TARGET_OF` come later."""


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

    def close(self) -> None:
        """Give the memory back; further calls do nothing."""


def choose_backend(bundle: Bundle, runtime: RuntimeOptions) -> str:
    """Which backend will run a bundle, checked as far as possible without opening a graph.

    Args:
        bundle: an open bundle.
        runtime: what was asked for.

    Returns:
        A name out of `IMPLEMENTED`.

    Raises:
        BackendError: it does not exist yet, the bundle has no graphs for it, or a provider that was asked for
            is not in this installation.
        MissingExtraError: its package is not installed.
    """
    name, reason = _check_backend(bundle, runtime)
    from tellapart.backends import ort

    providers = ort.choose_providers(runtime.providers)
    level = logging.INFO if runtime.backend == "auto" else logging.DEBUG
    _LOG.log(level, "backend %s %s on %s: %s", name, ort.runtime_version(), " then ".join(providers), reason)
    return name


def count_threads(backend: str, runtime: RuntimeOptions) -> int:
    """How many threads the options allow for one image, "auto" decided.

    Args:
        backend: what `choose_backend` gave.
        runtime: what was asked for.
    """
    from tellapart.backends import ort

    return ort.count_threads(runtime)


def _check_backend(bundle: Bundle, runtime: RuntimeOptions) -> tuple[str, str]:
    """The backend's name, and why it was chosen."""
    if runtime.backend == "auto":
        # With one backend implemented the choice is short; the reason still says what was passed over.
        others = ", ".join(name for name in TARGET_OF if name not in IMPLEMENTED)
        name, reason = "onnxruntime", f"{others} are not in this version"
    else:
        name, reason = runtime.backend, "it was asked for"
    if name not in IMPLEMENTED:
        raise BackendError(
            f"the backend {name!r} comes in a later version of tellapart; this one has "
            f"{', '.join(IMPLEMENTED)}: use backend='auto' or leave it out"
        )
    if TARGET_OF[name] not in bundle.manifest.targets:
        raise BackendError(
            f"{bundle.name} has no graphs for {name}, only for {', '.join(bundle.manifest.targets)}; "
            f"export it again: tellapart export CHECKPOINT --target {TARGET_OF[name]}"
        )
    return name, reason


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
    _check_backend(bundle, runtime)
    from tellapart.backends import ort

    return ort.open_session(bundle, role, runtime)
