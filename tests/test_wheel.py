"""The built wheel, tried as a stranger would: in an empty environment, with nothing but the SDK.

Slow: it builds and installs packages, so it needs an index or pip's cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [
    "tellapart",
    "tellapart_app",
    "tellapart_coreml",
    "tellapart_export",
    "tellapart_model",
    "tellapart_quantization",
    "tellapart_training",
]
MIB = 1024 * 1024

pytestmark = pytest.mark.slow


def run(command: Sequence[str | Path], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A process that sees nothing of this checkout."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=env, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    done = run([*pip, "--no-deps", "--wheel-dir", out, ROOT], cwd=out)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel and the extra `cpu`; its folder of programs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = run([*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]"], cwd=folder)
    assert done.returncode == 0, done.stderr
    return programs


def test_the_wheel_holds_our_packages_and_the_bundle(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        manifest = json.loads(archive.read("tellapart/model/tellapart.json"))
    tops = sorted({name.split("/")[0] for name in names})
    assert [name for name in tops if not name.endswith(".dist-info")] == PACKAGES
    for package in PACKAGES:
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    inside = {name.removeprefix("tellapart/model/") for name in names if name.startswith("tellapart/model/")}
    assert inside == {*manifest["files"], "tellapart.json"}
    assert sum(entry["bytes"] for entry in manifest["files"].values()) <= 30 * MIB
    prompts = (ROOT / "training" / "tellapart_training" / "boost" / "prompts").glob("*.txt")
    assert {f"tellapart_training/boost/prompts/{path.name}" for path in prompts} <= set(names)
    assert [name for name in names if name.startswith(("samples", "tests")) or name.endswith(".jpg")] == []


def test_an_empty_environment_captions_a_sample(environment: Path, tmp_path: Path) -> None:
    photo = ROOT / "samples" / "photos" / "cat.jpg"
    done = run([environment / "tellapart", "caption", photo, "--json"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["caption"].split()) >= 3
    done = run([environment / "tellapart", "verify"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_environment_keeps_its_budget(environment: Path, tmp_path: Path) -> None:
    listing = run([environment / "python", "-m", "pip", "list", "--format", "json"], cwd=tmp_path)
    # What tellapart brings along: pip and its company came with the environment.
    brought = {item["name"] for item in json.loads(listing.stdout)} - {
        "pip",
        "setuptools",
        "wheel",
        "tellapart",
    }
    assert len(brought) <= 6, brought
    assert {"torch", "transformers", "tokenizers", "onnx"}.isdisjoint(brought)
    not_ours = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
    folders = [path for path in environment.parent.rglob("site-packages") if path.is_dir()]
    size_bytes = sum(
        path.stat().st_size
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in not_ours
    )
    assert size_bytes <= 200 * MIB


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["export", "no-such-checkpoint", "--out", "x"], "export"),
        (["train", "mle", "--config", "config.toml"], "train"),
    ],
)
def test_a_missing_extra_exits_2_with_the_command(
    arguments: list[str], extra: str, environment: Path, tmp_path: Path
) -> None:
    config = (ROOT / "training" / "configs" / "toy_mle.toml").read_text(encoding="utf-8")
    (tmp_path / "config.toml").write_text(config, encoding="utf-8")
    done = run([environment / "tellapart", *arguments], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f'pip install "tellapart[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr
