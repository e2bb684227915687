"""The error family: one root, drawn whole, and able to cross a process."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from tellapart import errors

FAMILY = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
}


def test_every_error_is_a_tellapart_error():
    assert all(issubclass(kind, errors.TellapartError) for kind in FAMILY.values())
    assert sorted(FAMILY) == sorted(errors.__all__)


def test_the_tree_in_the_docstring_is_the_real_one():
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.search(r"[├└]── ", line)]
    drawn, parents = {}, ["TellapartError"]
    for line in lines:
        depth = (line.index("── ") - 6) // 5 + 1
        name = line.split("── ")[1].split()[0]
        parents[depth:] = [name]
        drawn[name] = parents[depth - 1]
    real = {name: kind.__bases__[0].__name__ for name, kind in FAMILY.items() if name != "TellapartError"}
    assert drawn == real


@pytest.mark.parametrize(
    "error",
    [
        errors.TruncatedImageError("it breaks off", image="a.jpg"),
        errors.ManifestError("no name", bundle="b"),
        errors.MissingExtraError("cpu", "Reading needs Pillow"),
        errors.ShapeError("(3, 4) came"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_missing_extra_is_answered_with_the_command():
    error = errors.MissingExtraError("cpu", "Captioning needs a runtime and none is installed")
    assert str(error) == 'Captioning needs a runtime and none is installed: pip install "tellapart[cpu]"'
    assert error.extra == "cpu"
    assert 'pip install "tellapart[train]"' in str(errors.MissingExtraError("train"))


def test_an_image_error_names_its_image():
    assert errors.ImageTooLargeError("too large", image="x.png").image == "x.png"
    assert errors.ImageError("odd").image == ""
