"""The toy pair that export and quantization are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from toy_pair import make_bundle, make_checkpoint


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights at 32 px; not to be changed."""
    return make_checkpoint(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float bundle of `toy_checkpoint`; not to be changed."""
    return make_bundle(tmp_path_factory.getbasetemp())
