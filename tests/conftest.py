"""Fixtures that every room's tests may use; nothing here needs more than the SDK's own environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

TINY_BUNDLE = Path(__file__).parent / "data" / "tiny_bundle"


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """The committed bundle of `make_tiny_bundle.py`; copy it before changing it."""
    return TINY_BUNDLE


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `examples/export_and_quantize.py` makes, and what it prints: a minute; not to be changed."""
    pytest.importorskip("torch")
    folder, root = tmp_path_factory.mktemp("tiny"), Path(__file__).parents[1]
    rooms = ("sdk", "training", "export", "quantization")
    done = subprocess.run(
        [sys.executable, root / "examples" / "export_and_quantize.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(root / room) for room in rooms)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny", done.stdout


@pytest.fixture
def toy_images() -> dict[str, NDArray[np.uint8]]:
    """Drawn pictures by name, (h, w, 3) uint8 of several sizes, that the tiny bundle tells apart."""

    def flat(height: int, width: int, *colour: int) -> NDArray[np.uint8]:
        return np.full((height, width, 3), colour, np.uint8)

    images = {
        "red": flat(16, 16, 250, 10, 10),
        "green": flat(24, 40, 10, 230, 20),
        "blue": flat(33, 17, 5, 15, 240),
        "white": flat(16, 16, 255, 255, 255),
        "black": flat(8, 8, 0, 0, 0),
    }
    halves = flat(32, 32, 240, 10, 10)
    halves[:, 16:] = (10, 10, 240)
    images["red_blue"] = halves
    halves = flat(48, 32, 10, 220, 10)
    halves[:24] = (240, 230, 10)
    images["yellow_green"] = halves
    return images


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads what somebody measured before, or leaves anything in a home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def generator() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240607)


@pytest.fixture
def block_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to open a connection or look a name up fails the test."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("the code under test reached for the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
