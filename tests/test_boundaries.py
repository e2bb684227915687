"""Who may import whom, read out of the source; and that the SDK is light, seen in a fresh process."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "tellapart": ROOT / "sdk" / "tellapart",
    "tellapart_model": ROOT / "training" / "tellapart_model",
    "tellapart_training": ROOT / "training" / "tellapart_training",
    "tellapart_coreml": ROOT / "export" / "tellapart_coreml",
    "tellapart_export": ROOT / "export" / "tellapart_export",
    "tellapart_quantization": ROOT / "quantization" / "tellapart_quantization",
    "tellapart_app": ROOT / "apps" / "tellapart_app",
}
MAY_IMPORT = {
    "tellapart": set(),
    "tellapart_model": {"tellapart"},
    "tellapart_coreml": {"tellapart"},
    "tellapart_export": {"tellapart", "tellapart_coreml", "tellapart_model"},
    "tellapart_quantization": {"tellapart", "tellapart_coreml", "tellapart_training"},
    "tellapart_training": {"tellapart", "tellapart_model"},
    "tellapart_app": {"tellapart"},
}
"""Of ours; a package may always import itself."""

FROM_OUTSIDE_IN_SDK = {"numpy", "PIL", "onnxruntime", "openvino", "coremltools"}
NEVER_IN_SDK = {"torch", "transformers", "onnx", "tokenizers"}

# Modules of the SDK that stay free of what would make them hard to use alone: module -> never imports.
SDK_ROOMS = {
    "errors": {"tellapart.types", "numpy"},
    "types": {"tellapart.manifest", "tellapart.bundle"},
    "manifest": {"numpy", "tellapart.backends"},
    "bundle": {"numpy", "tellapart.backends"},
    "image": {"tellapart.preprocess", "tellapart.backends"},
    "preprocess": {"tellapart.image.load_image", "tellapart.backends"},
    "tokenizer": {"numpy", "tellapart.backends"},
    "byte_pairs": {"numpy", "tellapart.backends"},
    "kv_cache": {"tellapart.backends", "tellapart.tokenizer"},
    "decode": {"tellapart.kv_cache", "tellapart.backends"},
    "beams": {"tellapart.kv_cache", "tellapart.backends"},
    "bulk": {"numpy", "tellapart.captioner", "tellapart.backends"},
    "contrast": {"tellapart.kv_cache", "tellapart.backends"},
    "writer": {"tellapart.captioner", "tellapart.backends"},
    "bag": {"tellapart.backends"},
    "confidence": {"tellapart.captioner", "tellapart.backends"},
    "manifest_confidence": {"numpy", "tellapart.backends"},
    "rerank": {"tellapart.captioner", "tellapart.backends"},
    "retriever": {"tellapart.captioner", "tellapart.decode"},
    "similarity": {"tellapart.captioner", "tellapart.retriever", "tellapart.backends"},
    "search": {"tellapart.captioner", "tellapart.decode"},
    "scene": {"tellapart.captioner", "tellapart.backends"},
    "frames": {"tellapart.captioner", "tellapart.backends", "numpy"},
    "live": {"tellapart.captioner", "tellapart.backends"},
    "bench": {"tellapart.cli", "tellapart.commands"},
    "worker_captioner": {"tellapart.captioner", "tellapart.engine", "tellapart.backends"},
    "worker_lines": {"tellapart.captioner", "tellapart.engine", "tellapart.backends"},
    "checks": {"tellapart.cli", "tellapart.commands"},
    "cache_folder": {"numpy", "tellapart.captioner", "tellapart.backends"},
    "doctor": {"tellapart.cli", "tellapart.commands"},
    "pages": {"tellapart.captioner", "tellapart.backends"},
    "xmp": {"numpy", "tellapart.captioner", "tellapart.backends"},
}


def modules(package: str) -> list[Path]:
    """Every source file of a package."""
    return sorted(PACKAGES[package].rglob("*.py"))


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, those under `if TYPE_CHECKING` left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes.extend(node.orelse)
            continue
        if top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))


def reaches(name: str, target: str) -> bool:
    """Whether an imported dotted name is `target` or something inside it."""
    return name == target or name.startswith(target + ".")


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_whom_they_may(package: str) -> None:
    files = modules(package)
    if not files:
        pytest.fail(f"{package} has no source; is its folder where pyproject.toml says?")
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if (root := name.split(".")[0]) in PACKAGES and root not in allowed
    ]
    assert wrong == []


def test_of_training_the_quantizer_knows_the_metrics_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("tellapart_quantization")
        for name in imports(path)
        if reaches(name, "tellapart_training") and not reaches(name, "tellapart_training.metrics")
    ]
    assert wrong == []


def test_the_metrics_are_light() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, tellapart_training.metrics; assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "sdk"), str(ROOT / "training")))},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_sdk_knows_the_standard_library_numpy_pillow_and_runtimes_only() -> None:
    allowed = FROM_OUTSIDE_IN_SDK | {"tellapart", "__future__"} | sys.stdlib_module_names
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("tellapart")
        for name in imports(path)
        if name.split(".")[0] not in allowed
    ]
    assert wrong == []
    assert not NEVER_IN_SDK & FROM_OUTSIDE_IN_SDK


def test_a_runtime_is_imported_only_inside_backends() -> None:
    backends = PACKAGES["tellapart"] / "backends"
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("tellapart")
        if backends not in path.parents
        for name in imports(path)
        if name.split(".")[0] in {"onnxruntime", "openvino", "coremltools"}
    ]
    assert wrong == []


def test_pillow_and_runtimes_are_imported_late() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name} at the top"
        for path in modules("tellapart")
        for name in imports(path, top_only=True)
        if name.split(".")[0] in FROM_OUTSIDE_IN_SDK - {"numpy"}
    ]
    assert wrong == []


@pytest.mark.parametrize("room", SDK_ROOMS)
def test_rooms_of_the_sdk_keep_to_themselves(room: str) -> None:
    path = PACKAGES["tellapart"] / f"{room}.py"
    wrong = [name for name in imports(path) for target in SDK_ROOMS[room] if reaches(name, target)]
    assert wrong == []


@pytest.mark.parametrize("package", ["tellapart_coreml", "tellapart_quantization", "tellapart_app"])
def test_what_runs_beside_a_device_never_imports_torch(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imports(path)
        if name.split(".")[0] in {"torch", "transformers"}
    ]
    assert wrong == []


def test_command_lines_import_nothing_heavy_at_the_top() -> None:
    heavy = {
        "torch",
        "transformers",
        "accelerate",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "PIL",
        "gradio",
        "PySide6",
    }
    tops = [
        PACKAGES["tellapart"] / "cli.py",
        *(PACKAGES[name] / "cli.py" for name in ("tellapart_training", "tellapart_export")),
        PACKAGES["tellapart_quantization"] / "cli.py",
        PACKAGES["tellapart_app"] / "cli.py",
    ]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in tops
        for name in imports(path, top_only=True)
        if name.split(".")[0] in heavy
    ]
    assert wrong == []


def test_no_pickle_anywhere() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in PACKAGES
        for path in modules(package)
        for name in imports(path)
        if name.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    ]
    assert wrong == []


def test_source_roots_hold_no_package_of_their_own() -> None:
    # An `__init__.py` there would make `import export` work, and two names for one file.
    roots = {path.parent for path in PACKAGES.values()}
    assert [str(root) for root in roots if (root / "__init__.py").exists()] == []


FORBID = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise AssertionError(name + " was imported")
sys.meta_path.insert(0, Refuse())
"""


def run_with_forbidden(forbidden: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process in which the import of some packages fails the test."""
    return subprocess.run(
        [sys.executable, "-c", f"FORBIDDEN = {forbidden!r}{FORBID}{code}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "sdk"), "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_the_import_works_where_everything_heavy_is_forbidden() -> None:
    forbidden = NEVER_IN_SDK | {"PIL", "onnxruntime", "openvino", "scipy"}
    forbidden |= set(PACKAGES) - {"tellapart"}
    done = run_with_forbidden(
        forbidden, "import tellapart, tellapart.cli; tellapart.Captioner; print('light')"
    )
    assert (done.stdout.strip(), done.returncode) == ("light", 0), done.stderr


def test_the_guard_of_the_test_above_bites() -> None:
    done = run_with_forbidden({"json"}, "import tellapart.manifest")
    assert done.returncode != 0
    assert "json was imported" in done.stderr


def test_a_caption_is_made_where_training_packages_are_forbidden(tiny_bundle: Path) -> None:
    code = (
        "import numpy, tellapart\n"
        f"with tellapart.Captioner.open({str(tiny_bundle)!r}) as captioner:\n"
        "    print(captioner.caption(numpy.full((16, 16, 3), 255, 'uint8')).text)\n"
    )
    done = run_with_forbidden(NEVER_IN_SDK | set(PACKAGES) - {"tellapart"}, code)
    assert "white" in done.stdout, done.stderr


def test_the_caption_command_starts_without_what_it_never_needs() -> None:
    # Each would cost every caption's start some hundredths of a second.
    forbidden = {"http", "asyncio", "multiprocessing", "unittest"}
    done = run_with_forbidden(forbidden, "import tellapart.cli, tellapart.commands.caption; print('light')")
    assert (done.stdout.strip(), done.returncode) == ("light", 0), done.stderr
