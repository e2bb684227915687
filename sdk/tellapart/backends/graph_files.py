"""What every runtime asks of a graph before and after it reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from tellapart.bundle import Bundle
from tellapart.errors import BackendError, BundleIntegrityError
from tellapart.manifest import GraphSpec, TensorSpec


def verified_bytes(bundle: Bundle, path: str) -> bytes:
    """A file's content, hashed again: what is parsed is what the manifest names, whatever happened since.

    Raises:
        BundleIntegrityError: it changed since the bundle was opened.
    """
    content = bundle.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != bundle.manifest.files[path].sha256:
        raise BundleIntegrityError(
            f"{bundle.name}: {path} changed while the bundle was open; fetch or export the bundle again",
            bundle=bundle.name,
        )
    return content


def check_names(
    bundle: str, graph: GraphSpec, what: str, have: Iterable[str], want: Iterable[TensorSpec]
) -> None:
    """Compare the inputs or outputs of a graph with its page.

    Raises:
        BackendError: they differ.
    """
    names, promised = list(have), [tensor.name for tensor in want]
    if sorted(names) != sorted(promised):
        raise BackendError(
            f"{graph.file} of {bundle} has the {what} {', '.join(names)}, and its manifest says "
            f"{', '.join(promised)}; export the bundle again"
        )


def first_line(error: Exception) -> str:
    """What a runtime's exception says, short enough for a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
