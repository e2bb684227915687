"""Reading untrusted JSON key by key: each answer has the wanted type or is a ManifestError.

Used by `manifest` alone. What Python's `json` lets through and a manifest must not hold is refused here:
a key twice, NaN and infinities, nesting without end, text that is not Unicode, numbers in disguise
(`true` for 1, 1.0 for 1), and paths that leave the bundle.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from tellapart.errors import ManifestError

MAX_DEPTH = 32
"""Deepest nesting of arrays and objects; a manifest needs 5, a report a few more."""

_REQUIRED: Any = object()


def manifest_error(bundle: str, what: str) -> ManifestError:
    """A ManifestError "tellapart.json of BUNDLE <what>"."""
    return ManifestError(f"tellapart.json{f' of {bundle}' if bundle else ''} {what}", bundle=bundle)


def load_json(text: bytes | str, *, bundle: str = "") -> Any:
    """Parse JSON strictly.

    Raises:
        ManifestError: not UTF-8, not JSON, a key twice, NaN or infinity, too deep, half a surrogate pair.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            twice = next(key for index, (key, _) in enumerate(items) if key in dict(items[:index]))
            raise manifest_error(bundle, f"has the key {twice!r} twice in one object")
        return found

    def refuse(word: str) -> NoReturn:
        raise manifest_error(bundle, f"holds {word}, which JSON does not have; use a finite number")

    def finite(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(digits[:40])

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        page = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse, parse_float=finite)
    except RecursionError as error:
        raise manifest_error(bundle, f"is nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, an integer of thousands of digits
        raise manifest_error(bundle, f"is not JSON in UTF-8: {error}") from error
    _check_values(page, bundle)
    return page


def _check_values(page: Any, bundle: str) -> None:
    """Walk without recursion: depth, and strings that could not be written again."""
    waiting: list[tuple[Any, int]] = [(page, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise manifest_error(bundle, f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            waiting += [(key, depth) for key in value] + [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise manifest_error(bundle, f"holds text that is not Unicode: {value[:40]!r}") from error


def check_path(path: str) -> str:
    """Why a path may not be in a bundle, or "" where it may: relative, with `/`, on every system."""
    if not path or len(path) > 1024:
        return "is empty or longer than 1024 characters"
    if "\\" in path or ":" in path:
        return "has a backslash or a colon; write folders with '/' and no drive"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path):
        return "has control characters"
    if path.startswith("/"):
        return "is absolute; paths are relative to the bundle"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "must not have '.', '..' or empty parts"
        if part != part.strip() or part.endswith("."):
            return "has a part that begins or ends with a space or ends with a dot"
    return ""


def path_key(path: str) -> str:
    """Equal for two paths that some file system takes for one: letter case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def check_paths(paths: Iterable[str], *, reserved: str, bundle: str) -> None:
    """Refuse paths that leave the bundle, that collide, or that are the manifest itself.

    Raises:
        ManifestError: names the first bad path and what is wrong with it.
    """
    seen: dict[str, str] = {}
    for path in paths:
        reason = check_path(path)
        if reason:
            raise manifest_error(bundle, f"lists the file {path[:200]!r}, which {reason}")
        key = path_key(path)
        if key == path_key(reserved):
            raise manifest_error(bundle, f"lists {path!r}, itself, among its files")
        if key in seen:
            raise manifest_error(
                bundle, f"lists {seen[key]!r} and {path!r}, one file where letter case is ignored"
            )
        seen[key] = path
    for key, path in seen.items():
        parts = key.split("/")
        for length in range(1, len(parts)):
            parent = "/".join(parts[:length])
            if parent in seen:
                raise manifest_error(
                    bundle, f"lists {seen[parent]!r} as a file and as the folder of {path!r}"
                )


class Section:
    """One JSON object with its place in the page, read key by key."""

    def __init__(self, values: dict[str, Any], where: str, bundle: str) -> None:
        """Keep the object; `where` is its dotted place, "" for the top."""
        self.values: Mapping[str, Any] = values
        self.bundle = bundle
        self._where = where

    def error(self, key: str, what: str) -> ManifestError:
        """A ManifestError about one key of this section."""
        place = f"{self._where}.{key}" if self._where else key
        return manifest_error(self.bundle, f"is wrong: {place} {what}")

    def only(self, known: Iterable[str]) -> None:
        """Refuse keys that are not known, with the nearest known name."""
        names = tuple(known)
        for key in self.values:
            if key not in names:
                import difflib  # only on the way to an error

                near = difflib.get_close_matches(key, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"
                raise self.error(key[:100], f"is not a known key; {hint}")

    def _get(self, key: str, default: Any) -> Any:
        if key in self.values:
            return self.values[key]
        if default is _REQUIRED:
            raise self.error(key, "is missing")
        return default

    def _wrong(self, key: str, wanted: str, value: Any) -> ManifestError:
        return self.error(key, f"must be {wanted}, got {repr(value)[:80]}")

    def text(self, key: str, *, default: str = _REQUIRED) -> str:
        """A string; empty only where that is the default."""
        value = self._get(key, default)
        if not isinstance(value, str) or (not value and default is _REQUIRED):
            raise self._wrong(key, "a string that is not empty", value)
        return value

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, str) or value not in known:
            raise self._wrong(key, f"one of {', '.join(known)}", value)
        return value

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def integer(self, key: str, *, least: int, most: int | None = None, default: int = _REQUIRED) -> int:
        """A whole number without a fraction or exponent; `true` is none."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least or (most and value > most):
            top = f" and at most {most}" if most else ""
            raise self._wrong(key, f"an integer of at least {least}{top}", value)
        return value

    def number(self, key: str, *, least: float, default: float = _REQUIRED) -> float:
        """A finite number."""
        return self._number(key, self._get(key, default), least=least)

    def _number(self, key: str, value: Any, *, least: float = -1e9) -> float:
        # The ceiling also keeps float() from overflowing on an integer of hundreds of digits.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= 1e9:
            raise self._wrong(key, f"a number from {least:g} to 1e9", value)
        return float(value)

    def numbers(self, key: str, *, length: int) -> tuple[float, ...]:
        """A list of so many numbers."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, list) or len(value) != length:
            raise self._wrong(key, f"a list of {length} numbers", value)
        return tuple(self._number(key, item) for item in value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of strings", value)
        return tuple(value)

    def shape(self, key: str) -> tuple[int | str, ...]:
        """A list of sizes above 0 and names of free dimensions."""
        value = self._get(key, _REQUIRED)
        good = isinstance(value, list) and all(
            (isinstance(item, int) and not isinstance(item, bool) and item > 0)
            or (isinstance(item, str) and item)
            for item in value
        )
        if not good:
            raise self._wrong(key, "a list of sizes above 0 and names", value)
        return tuple(value)

    def section(self, key: str, *, default: dict[str, Any] = _REQUIRED) -> Section:
        """An object."""
        value = self._get(key, default)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object", value)
        return Section(value, f"{self._where}.{key}" if self._where else key, self.bundle)

    def sections(self, key: str) -> Iterator[Section]:
        """A list of objects."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._wrong(key, "a list of objects", value)
        place = f"{self._where}.{key}" if self._where else key
        return (Section(item, f"{place}[{index}]", self.bundle) for index, item in enumerate(value))
