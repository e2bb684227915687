"""Every error a user can meet, on one screen.

    TellapartError
     ├── UsageError                 an argument or option that cannot be right
     ├── MissingExtraError          an optional package is not installed; says the pip command
     ├── ImageError                 one image; `.image` names it, other images may go on
     │    ├── UnreadableImageError  missing, a folder, empty, or not an image
     │    ├── TruncatedImageError   an image that breaks off or is damaged inside
     │    └── ImageTooLargeError    more pixels than the limit; refused before decoding
     ├── BundleError                a device bundle; `.bundle` names it
     │    ├── ManifestError         tellapart.json is not what it should be
     │    ├── BundleVersionError    written by a newer tellapart than this one
     │    └── BundleIntegrityError  files missing, added, linked, escaping, or changed
     ├── BackendError               a runtime or provider that is absent or failed
     ├── ShapeError                 an array of another shape or dtype than asked
     ├── VocabularyError            a vocabulary file that cannot be used
     ├── ClosedError                used after close()
     ├── SourceError                frames that stopped coming: the camera failed or went silent
     ├── WorkerError                the worker process ended; the next call starts another
     ├── OutputError                captions that could not be written; what was written stays whole
     ├── CheckpointError            a training checkpoint: absent, damaged, another architecture
     ├── ConfigError                a configuration: unknown key, wrong value
     ├── DataError                  captions, bags or data sets that cannot be read
     ├── ParityError                an exported graph that differs from its network
     └── BudgetError                a promise not kept: size, recall drop, agreement

A deadline that passes is not an error: the caption comes back with `truncated` set.

Every message says what was expected, what came, and what to do. Errors survive pickling, so that they
can cross from a worker process.
"""

from __future__ import annotations

__all__ = [
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
]


class TellapartError(Exception):
    """The root: catch this one to catch everything that tellapart raises on purpose."""


class UsageError(TellapartError):
    """An argument or option that cannot be right, whatever the data."""


class MissingExtraError(TellapartError):
    """An optional package is needed and not installed.

    Attributes:
        extra: the extra of this distribution that brings the package, as in `tellapart[cpu]`.
    """

    def __init__(self, extra: str, reason: str = "This step needs a package that is not installed") -> None:
        """Build the one-sentence answer with the install command.

        Args:
            extra: name of the extra, for example "cpu".
            reason: what needs it and what is missing, without a final stop.
        """
        super().__init__(extra, reason)
        self.extra = extra
        self.reason = reason

    def __str__(self) -> str:
        """The sentence a user reads."""
        return f'{self.reason}: pip install "tellapart[{self.extra}]"'


class ImageError(TellapartError):
    """One image could not be used; a batch may go on without it.

    Attributes:
        image: what the caller called the image: its path, or a description such as "<bytes>".
    """

    def __init__(self, message: str, *, image: str = "") -> None:
        """Keep the message and the name of the image."""
        super().__init__(message)
        self.image = image


class UnreadableImageError(ImageError):
    """Missing, a folder, empty, or not an image that Pillow knows."""


class TruncatedImageError(ImageError):
    """An image whose data breaks off or is damaged."""


class ImageTooLargeError(ImageError):
    """More pixels than the limit, by the header alone; nothing was decoded."""


class BundleError(TellapartError):
    """A device bundle that cannot be opened or written.

    Attributes:
        bundle: path of the bundle, where there is one.
    """

    def __init__(self, message: str, *, bundle: str = "") -> None:
        """Keep the message and the path of the bundle."""
        super().__init__(message)
        self.bundle = bundle


class ManifestError(BundleError):
    """`tellapart.json` is not JSON, lacks something, or says something impossible."""


class BundleVersionError(BundleError):
    """The bundle's `format_version` is newer than this tellapart understands."""


class BundleIntegrityError(BundleError):
    """Files missing, added, linked, escaping the folder, or not the bytes the manifest names."""


class BackendError(TellapartError):
    """A runtime or provider is absent, refused the graph, or failed while running it."""


class ShapeError(TellapartError):
    """An array of another shape or dtype than was asked for."""


class VocabularyError(TellapartError):
    """A vocabulary file that cannot be used, or ids that are not in it."""


class ClosedError(TellapartError):
    """Something was used after its `close()`."""


class SourceError(TellapartError):
    """Frames stopped coming: the source raised, or nothing came for longer than was allowed."""


class WorkerError(TellapartError):
    """The worker process ended before it answered; nothing else was harmed, the next call starts another."""


class OutputError(TellapartError):
    """Captions could not be written, as on a full disk; what was written before is whole and stays."""


class CheckpointError(TellapartError):
    """A training checkpoint is absent, damaged, or of another architecture."""


class ConfigError(TellapartError):
    """A configuration has an unknown key or a wrong value."""


class DataError(TellapartError):
    """Captions, bags or data sets that cannot be read."""


class ParityError(TellapartError):
    """An exported graph does not compute what its network computes."""


class BudgetError(TellapartError):
    """A promise was not kept: size, recall drop or agreement is over its budget."""
