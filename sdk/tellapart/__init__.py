"""tellapart: offline captions that tell look-alike pictures apart, and search by words.

    from tellapart import Captioner

    with Captioner.open() as captioner:
        print(captioner.caption("photo.jpg").text)

Names are loaded when they are first used, so that `import tellapart` costs less than `import numpy`, and
the parts that need no runtime work where none is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tellapart._version import __version__

if TYPE_CHECKING:
    from tellapart.bundle import Bundle as Bundle
    from tellapart.bundle import open_bundle as open_bundle
    from tellapart.captioner import Captioner as Captioner
    from tellapart.errors import BackendError as BackendError
    from tellapart.errors import BudgetError as BudgetError
    from tellapart.errors import BundleError as BundleError
    from tellapart.errors import BundleIntegrityError as BundleIntegrityError
    from tellapart.errors import BundleVersionError as BundleVersionError
    from tellapart.errors import CheckpointError as CheckpointError
    from tellapart.errors import ClosedError as ClosedError
    from tellapart.errors import ConfigError as ConfigError
    from tellapart.errors import DataError as DataError
    from tellapart.errors import ImageError as ImageError
    from tellapart.errors import ImageTooLargeError as ImageTooLargeError
    from tellapart.errors import ManifestError as ManifestError
    from tellapart.errors import MissingExtraError as MissingExtraError
    from tellapart.errors import OutputError as OutputError
    from tellapart.errors import ParityError as ParityError
    from tellapart.errors import ShapeError as ShapeError
    from tellapart.errors import SourceError as SourceError
    from tellapart.errors import TellapartError as TellapartError
    from tellapart.errors import TruncatedImageError as TruncatedImageError
    from tellapart.errors import UnreadableImageError as UnreadableImageError
    from tellapart.errors import UsageError as UsageError
    from tellapart.errors import VocabularyError as VocabularyError
    from tellapart.errors import WorkerError as WorkerError
    from tellapart.image import load_image as load_image
    from tellapart.live import LiveCaptions as LiveCaptions
    from tellapart.live import LiveOptions as LiveOptions
    from tellapart.live import LiveResult as LiveResult
    from tellapart.retriever import Retriever as Retriever
    from tellapart.scene import SceneGate as SceneGate
    from tellapart.types import BagResult as BagResult
    from tellapart.types import Caption as Caption
    from tellapart.types import DecodeOptions as DecodeOptions
    from tellapart.types import RuntimeOptions as RuntimeOptions
    from tellapart.types import UnsureCaption as UnsureCaption
    from tellapart.types import View as View
    from tellapart.worker_captioner import WorkerCaptioner as WorkerCaptioner

_HOMES = {
    "bundle": ("Bundle", "open_bundle"),
    "captioner": ("Captioner",),
    "errors": (
        "BackendError",
        "BudgetError",
        "BundleError",
        "BundleIntegrityError",
        "BundleVersionError",
        "CheckpointError",
        "ClosedError",
        "ConfigError",
        "DataError",
        "ImageError",
        "ImageTooLargeError",
        "ManifestError",
        "MissingExtraError",
        "OutputError",
        "ParityError",
        "ShapeError",
        "SourceError",
        "TellapartError",
        "TruncatedImageError",
        "UnreadableImageError",
        "UsageError",
        "VocabularyError",
        "WorkerError",
    ),
    "image": ("load_image",),
    "live": ("LiveCaptions", "LiveOptions", "LiveResult"),
    "retriever": ("Retriever",),
    "scene": ("SceneGate",),
    "worker_captioner": ("WorkerCaptioner",),
    "types": ("BagResult", "Caption", "DecodeOptions", "RuntimeOptions", "UnsureCaption", "View"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BackendError",
    "BagResult",
    "BudgetError",
    "Bundle",
    "BundleError",
    "BundleIntegrityError",
    "BundleVersionError",
    "Caption",
    "Captioner",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "DataError",
    "DecodeOptions",
    "ImageError",
    "ImageTooLargeError",
    "LiveCaptions",
    "LiveOptions",
    "LiveResult",
    "ManifestError",
    "MissingExtraError",
    "OutputError",
    "ParityError",
    "Retriever",
    "RuntimeOptions",
    "SceneGate",
    "ShapeError",
    "SourceError",
    "TellapartError",
    "TruncatedImageError",
    "UnreadableImageError",
    "UnsureCaption",
    "UsageError",
    "View",
    "VocabularyError",
    "WorkerCaptioner",
    "WorkerError",
    "__version__",
    "load_image",
    "open_bundle",
]


def __getattr__(name: str) -> Any:
    """Load the module of a public name at its first use, and keep the name."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'tellapart' has no attribute {name!r}")
    value = getattr(import_module(f"tellapart.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not, for completion in a shell."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
