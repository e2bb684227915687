"""The toy checkpoint and bundle of the export tests serve here too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "export_fixtures", Path(__file__).parents[1] / "export" / "conftest.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
toy_checkpoint = _MODULE.toy_checkpoint
toy_bundle = _MODULE.toy_bundle
