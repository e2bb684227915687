"""What a bundle's manifest says about proofs and measurements, as a page of Markdown that people can read.

The figures stay in the manifest, under the same words; the page is drawn from whatever is there, so a new
figure needs no change here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from tellapart.manifest import Manifest

REPORT_NAME = "REPORT.md"
"""File name of the page in a bundle."""

_Cells: TypeAlias = Mapping[str, Any]


def report_page(manifest: Manifest) -> str:
    """The page of a bundle.

    Args:
        manifest: complete but for the page itself.

    Returns:
        Markdown; whatever comes from outside, such as names of folders, is escaped.
    """
    pixels = manifest.preprocessing
    facts = {
        "kind": ", ".join(manifest.kind),
        "precision": f"{manifest.precision} ({manifest.scheme})" if manifest.scheme else manifest.precision,
        "targets": ", ".join(manifest.targets),
        "image": f"{pixels.image_px} px, {pixels.resize}, {pixels.filter}",
        "size, MiB": sum(entry.bytes for entry in manifest.files.values()) / 2**20,
        "licence": manifest.licence or "not stated",
    }
    sizes = {path: entry.bytes / 2**20 for path, entry in manifest.files.items() if path != REPORT_NAME}
    lines = [
        f"# Report: {_text(manifest.name)}",
        "",
        "Measured while this bundle was made, on the machine named below. `tellapart.json` beside this page "
        "holds the same figures, and `tellapart verify` checks that all files are those that were measured.",
        "",
        *_pairs(facts),
        "## Proved equal to the network (`parity`)",
        "",
        *(_section(manifest.parity, 3) if manifest.parity else ["Nothing was compared.", ""]),
    ]
    for name, figures in manifest.metrics.items():
        figures = figures if isinstance(figures, Mapping) else {name: figures}
        lines += [f"## Measured: {_words(name)}", "", *_section(figures, 3)]
    lines += ["## Where it came from (`source`)", "", *_section(manifest.source, 3)]
    lines += ["## Files, MiB", "", *_pairs(sizes)]
    return "\n".join(lines)


def _section(values: Mapping[str, Any], level: int) -> Iterator[str]:
    """Plain values as one table, records of the same keys as another, the rest below headings."""
    plain = {name: value for name, value in values.items() if not _is_nested(value)}
    if plain:
        yield from _pairs(plain)
    tables: dict[tuple[str, ...], dict[str, _Cells]] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value and not any(map(_is_nested, value.values())):
            tables.setdefault(tuple(value), {})[name] = value
    for columns, rows in tables.items():
        yield from _table(columns, rows)
    for name, value in values.items():
        if not _is_nested(value) or any(name in rows for rows in tables.values()) or not value:
            continue
        yield from (f"{'#' * min(level, 6)} {_words(name)}", "")
        if isinstance(value, Mapping):
            yield from _section(value, level + 1)
        else:
            records = {str(place): row for place, row in enumerate(value, start=1)}
            yield from _section(records, level + 1)


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for name, value in values.items():
        yield f"| {_words(name)} | {_text(value)} |"
    yield ""


def _table(columns: Sequence[str], rows: Mapping[str, _Cells]) -> Iterator[str]:
    yield f"| | {' | '.join(map(_words, columns))} |"
    yield f"|---|{'---|' * len(columns)}"
    for name, cells in rows.items():
        yield f"| {_words(name)} | {' | '.join(_text(cells[column]) for column in columns)} |"
    yield ""


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value)


def _words(name: str) -> str:
    # With a dot it is the name of a file or a tensor.
    return _text(name) if "." in name else _text(name).replace("_", " ")


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "-"
    plain = " ".join(str(value).split())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
