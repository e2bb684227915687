"""The public names are exactly `__all__`, and every error of ours is a `TellapartError`."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import tellapart
from tellapart import errors

SDK = Path(tellapart.__file__).parent


def modules() -> list[ModuleType]:
    """Every module of the SDK but `__main__`, which would run, and runtimes that may not be installed."""
    names = [info.name for info in pkgutil.walk_packages([str(SDK)], prefix="tellapart.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert tellapart.__all__ == sorted(tellapart.__all__)
    for name in tellapart.__all__:
        assert getattr(tellapart, name) is not None
    assert set(tellapart.__all__) <= set(dir(tellapart))


def test_nothing_public_stands_outside_all() -> None:
    # What type checkers see, which `__getattr__` hides at run time: `from ... import X as X`.
    tree = ast.parse((SDK / "__init__.py").read_text(encoding="utf-8"))
    exported = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None
    }
    assert exported | {"__version__"} == set(tellapart.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Describer'"):
        tellapart.Describer  # noqa: B018


def test_names_of_the_contract_are_public() -> None:
    contract = {"Captioner", "Retriever", "DecodeOptions", "RuntimeOptions", "Caption", "BagResult", "View"}
    assert contract <= set(tellapart.__all__)


def test_every_exception_class_is_in_the_family() -> None:
    strays = [
        f"{module.__name__}.{name}"
        for module in modules()
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, BaseException)
        and value.__module__.startswith("tellapart")
        and not issubclass(value, errors.TellapartError)
    ]
    assert strays == []


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    family = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.TellapartError)
    }
    assert family == set(errors.__all__)
    assert family <= set(tellapart.__all__)
    assert errors.__doc__ is not None
    assert [name for name in family if name not in errors.__doc__] == []


def test_every_public_name_is_documented() -> None:
    names = [name for name in tellapart.__all__ if name != "__version__"]
    assert [name for name in names if not inspect.getdoc(getattr(tellapart, name))] == []


def test_no_assert_outside_the_tests() -> None:
    root = SDK.parents[1]
    folders = [root / "sdk", root / "training", root / "export", root / "quantization", root / "apps"]
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for folder in folders
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_the_version_is_one_string() -> None:
    from tellapart._version import __version__

    assert tellapart.__version__ == __version__
    assert __version__ in (SDK.parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
