"""What the pages say is true: their Python runs, their commands exist, their links lead somewhere.

A block of Python is run, in the order of its page, in a folder with `photo.jpg`, `a.jpg`, `b.jpg`, `c.jpg`,
`photos/` and `my-bundle`. A block of commands is held against the parsers, the Makefile and the extras, and
run, in a folder with whatever it names; `pip` alone is a stand-in, as `test_wheel.py` installs. Blocks that
name a checkpoint get the pair that `examples/train_tiny.py` trains. `<!-- not run: reason -->` leaves a block
to be compiled or checked only, `<!-- synopsis -->` says that it lists options, `<!-- output -->` that it is
no code.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tellapart
from tellapart import Captioner, DecodeOptions
from tellapart.cli import main
from tellapart.commands.arguments import ELSEWHERE, build_parser, verbs_of
from tellapart.tokenizer import Tokenizer

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {"tellapart", "pip", "make", "python", "pyinstaller"}
"""What a command of ours may begin with; anything else needs a reason not to be run."""


@dataclass(frozen=True)
class Block:
    """One block of code of a page."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """The comment before it, "" where there is none."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> Iterator[Block]:
    """Fenced blocks, and indented ones as language "indented"."""
    lines = path.read_text(encoding="utf-8").split("\n")
    mark, number = "", 0
    while number < len(lines):
        line = lines[number]
        first = number
        if comment := re.fullmatch(r"<!-- (.*) -->", line.strip()):
            mark = comment[1]
        elif line.startswith("```"):
            number += 1
            while not lines[number].startswith("```"):
                number += 1
            text = "\n".join(lines[first + 1 : number])
            yield Block(path.name, first + 1, line[3:].strip() or "plain", text, mark)
            mark = ""
        elif line.startswith("    ") and not lines[number - 1].strip():
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            text = "\n".join(line[4:] for line in lines[first:number])
            yield Block(path.name, first + 1, "indented", text, mark)
            mark, number = "", number - 1
        elif line.strip():
            mark = ""
        number += 1


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(block: Block) -> Iterator[str]:
    """The commands of a block, continued lines joined, comments and prompts dropped."""
    if block.language not in ("bash", "console", "sh", "plain", "indented") or block.mark.startswith(
        "output"
    ):
        return
    for line in block.text.replace("\\\n", " ").split("\n"):
        line = line.removeprefix("$ ")
        line = re.split(r"\s+#", line)[0].strip()
        first = line.split(" ")[0]
        if block.language in ("bash", "sh"):
            if line and not line.startswith("#"):
                yield line
        elif first in COMMANDS:
            yield line


COMMAND_LINES = [
    pytest.param(command, block.mark, id=f"{block}-{command[:40]}")
    for block in BLOCKS
    for command in commands_of(block)
]


def parser_of(verb: str) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser that reads a verb, and what comes before its own arguments."""
    if verb not in ELSEWHERE:
        return build_parser(), [verb]
    module = importlib.import_module(ELSEWHERE[verb].module)
    make = getattr(module, "build_parser", None) or module._parser
    return make(), list(ELSEWHERE[verb].prefix)


def options_of(parser: argparse.ArgumentParser, path: list[str]) -> set[str]:
    """Every option of a parser and of those below it on a path of verbs."""
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                if not path or name == path[0]:
                    found |= options_of(below, path[1:])
    return found


def check_tellapart(command: str) -> None:
    """A whole command is parsed; of a synopsis every verb and every option must exist."""
    synopsis = "..." in command or " | " in command or re.search(r"\S {3,}\S", command) is not None
    if not synopsis:
        verb, *rest = shlex.split(command)[1:]
        parser, before = parser_of(verb)
        try:
            parser.parse_args([*before, *rest])
        except SystemExit as stop:
            pytest.fail(f"`{command}` is not understood (exit {stop.code})")
        return
    head = re.match(r"tellapart ((?:[a-z-]+(?: \| )?)+)", command)
    assert head is not None, command
    verbs = [verb for verb in re.split(r" \| | ", head[1].strip()) if verb]
    known = set(ELSEWHERE) | set(verbs_of(build_parser()))
    for verb in verbs[:1] if " | " not in head[1] else verbs:
        assert verb in known, f"there is no `tellapart {verb}`"
        parser, before = parser_of(verb)
        have = options_of(parser, before)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", command):
            assert option in have, f"`tellapart {verb}` has no {option}"


def check_pip(command: str) -> None:
    """Extras that a command names exist, and so do its files."""
    words = shlex.split(command)
    assert words[1] == "install", command
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    for word in words[2:]:
        if found := re.fullmatch(r"tellapart\[(.*)\]", word):
            assert set(found[1].split(",")) <= set(extras), command
    for flag, value in itertools.pairwise(words):
        if flag in ("-r", "--requirement"):
            assert (ROOT / value).exists(), command


@pytest.mark.train  # reads the parsers of every package
@pytest.mark.parametrize(("command", "mark"), COMMAND_LINES)
def test_commands_exist_with_the_options_shown(
    command: str, mark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *rest = command.split(" ")
    if first == "tellapart":
        check_tellapart(command)
    elif first == "pip":
        check_pip(command)
    elif first == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in [word for word in rest if "=" not in word]:
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target {target}"
    elif first == "python" and rest[0] == "-m":
        folder = rest[1].replace(".", "/")
        rooms = ("sdk", "training", "export", "quantization")
        assert any(
            (ROOT / room / folder).with_suffix(".py").exists()
            or (ROOT / room / folder / "__main__.py").exists()
            for room in rooms
        ), command
    elif first == "python":
        assert (ROOT / rest[0]).exists(), f"no file {rest[0]}"
    else:
        assert mark.startswith("not run: "), (
            f"`{command}` is checked by nobody; give a reason: <!-- not run: ... -->"
        )


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of, the current one for the test."""
    shutil.copyfile(ROOT / "samples" / "photos" / "cameraman.jpg", tmp_path / "photo.jpg")
    for name, colour in zip("abc", ("blue", "red", "yellow"), strict=True):
        shutil.copyfile(ROOT / "samples" / "bag" / f"{colour}.jpg", tmp_path / f"{name}.jpg")
    shutil.copytree(ROOT / "samples" / "photos", tmp_path / "photos")
    shutil.copytree(ROOT / "sdk" / "tellapart" / "model", tmp_path / "my-bundle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def workshop(
    tiny_run: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Path:
    """A folder with what a block about training and exporting names and does not make itself."""
    from toy_families import make_vit_gpt2

    made, _ = tiny_run
    text = request.node.callspec.params["block"].text
    shutil.copyfile(ROOT / "samples" / "photos" / "cameraman.jpg", tmp_path / "photo.jpg")
    # To calibrate takes all: it looks at 300 that training held back.
    rows = (made / "captions.jsonl").read_text(encoding="utf-8").replace('"test"', '"val"').splitlines()
    rows = rows if "calibrate" in text else rows[-150:] if "captions.jsonl" in text else rows[-48:]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "photos").mkdir()
    for name in (json.loads(row)["image"] for row in rows):
        shutil.copyfile(made / "images" / name, tmp_path / "photos" / name)
    for name in ("photos.tar", "images.tar"):
        if name in text:
            with tarfile.open(tmp_path / name, "w") as pile:
                pile.add(tmp_path / "photos", arcname=".")
    for name, what in {
        "CHECKPOINT": made / "run" / "best",
        "runs/mine/mle/best": made / "run" / "best",
        "runs/scorer/best": made / "run" / "best",
        "my-bundle": made / "bundles" / "float",
        "fp32": made / "bundles" / "float",
        "mine-float": made / "bundles" / "float",
        "my-int8": made / "bundles" / "int8",
    }.items():
        if name in text and f"--out {name}" not in text:
            shutil.copytree(what, tmp_path / name)
    if "toy_mle.toml" in text:
        shutil.copytree(made / "init", tmp_path / "runs" / "toy_init")
        toys = tmp_path / "runs" / "toy_data"
        toys.mkdir()
        (toys / "images").symlink_to(made / "images")
        (toys / "captions.jsonl").write_text("\n".join(rows[:16]), encoding="utf-8")
    if "HUGGING_FACE_FOLDER" in text:
        make_vit_gpt2(tmp_path / "HUGGING_FACE_FOLDER")
    if "--benchmark bags" in text:
        make = [
            "truematch",
            "build",
            str(tmp_path / "photos"),
            "--out",
            str(tmp_path / "bags"),
            "--sizes",
            "3",
        ]
        make += ["--model", str(made / "bundles" / "float"), "--max-bags", "10", "--near-duplicate", "1"]
        assert main(make) == 0
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names_of_the_pages() -> dict[str, Any]:
    """What a page may use without making it: `paths`, `frame`, and a `camera` that ends after ten frames."""
    from PIL import Image

    frame = np.asarray(Image.open("photo.jpg").convert("RGB"))
    frames: list[Any] = [frame] * 10
    camera = SimpleNamespace(read=lambda: frames.pop() if frames else None)
    return {"paths": ["a.jpg", "b.jpg"], "frame": frame, "camera": camera}


def run_page(name: str) -> dict[str, Any]:
    """Run the Python of a page from top to bottom; gives its names."""
    names: dict[str, Any] = {"__name__": "__main__", **names_of_the_pages()}
    for block in BLOCKS:
        if block.page == name and block.language == "python":
            # Line numbers of the page, so that a failure points at it.
            tree = ast.increment_lineno(ast.parse(block.text), block.line)
            code = compile(tree, name, "exec")
            if not block.mark.startswith("not run: "):
                exec(code, names)
    return names


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"}))
@pytest.mark.usefixtures("desk")
def test_the_python_of_a_page_runs(page: str) -> None:
    run_page(page)


def quarter_photos(folder: Path) -> None:
    """Add the quarters of every photo, as bags of seven need more photos than there are samples."""
    from PIL import Image

    for path in sorted(folder.iterdir()):
        with Image.open(path) as photo:
            width, height = photo.width // 2, photo.height // 2
            for place in range(4):
                left, top = place % 2 * width, place // 2 * height
                quarter = photo.crop((left, top, left + width, top + height))
                quarter.save(folder / f"{path.stem}-{place}.jpg")


def is_run(block: Block) -> bool:
    """Whether a block holds commands and nothing says that it is not to be run."""
    left_out = block.mark.startswith(("not run: ", "synopsis", "output", "real output"))
    return not left_out and bool(list(commands_of(block)))


def needs_training(block: Block) -> bool:
    """Whether a verb of its commands lives outside of the SDK."""
    verbs = {command.split(" ")[1] for command in commands_of(block) if command.startswith("tellapart ")}
    return not verbs.isdisjoint(ELSEWHERE)


def run_commands(block: Block, desk: Path) -> None:
    """Run the commands of a block as a reader would paste them, at a desk that has what they name."""
    tools = desk / "tools"
    tools.mkdir()
    for name, line in {
        "tellapart": f'exec "{sys.executable}" -W ignore -m tellapart "$@"',
        "python": f'exec "{sys.executable}" -W ignore "$@"',
        "pip": "exit 0",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    (desk / "runs").mkdir(exist_ok=True)
    for name in ("samples", "examples", "benchmarks", "training", "weights.txt"):
        (desk / name).symlink_to(ROOT / name)
    rooms = ("sdk", "training", "export", "quantization", "apps")
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(commands_of(block))],
        cwd=desk,
        env={
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in rooms),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(
            block, marks=[pytest.mark.slow, pytest.mark.long] if "python benchmarks/" in block.text else []
        )
        for block in BLOCKS
        if is_run(block) and not needs_training(block)
    ],
    ids=str,
)
def test_commands_of_the_sdk_are_run(block: Block, desk: Path) -> None:
    for name in ("my-int8", "OTHER_BUNDLE"):
        shutil.copytree(desk / "my-bundle", desk / name)
    if "truematch" in block.text:
        quarter_photos(desk / "photos")
    if "truematch run DIR" in block.text:
        assert main(["truematch", "build", "photos", "--out", "DIR", "--sizes", "3"]) == 0
        names = {path.name: "a man with a camera" for path in Path("photos").iterdir()}
        Path("captions.json").write_text(json.dumps(names), encoding="utf-8")
    run_commands(block, desk)


@pytest.mark.long
@pytest.mark.train
@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if is_run(block) and needs_training(block)], ids=str
)
def test_commands_of_training_are_run(block: Block, workshop: Path) -> None:
    run_commands(block, workshop)


@pytest.mark.usefixtures("desk")
def test_the_reader_of_the_format_page_captions_as_the_sdk_does() -> None:
    names = run_page("bundle_format.md")
    options = DecodeOptions(beams=1, rerank=0.0)
    with Captioner.open("my-bundle") as captioner:
        tokenizer = Tokenizer.from_bundle(captioner.bundle)
        for words in ("A man's t-shirt, skateboarding xylophonists!", "qqqq 12345 unbelievable", ""):
            assert names["encode"](words) == tokenizer.encode(words)
        for path in ["photo.jpg", *map(str, sorted(Path("photos").iterdir())), "a.jpg"]:
            said, ids, mean_logprob, fit, cross = names["caption"](path)
            wanted = captioner.caption(path, options=options)
            assert said == wanted.text
            assert tuple(ids) == wanted.token_ids
            assert mean_logprob == pytest.approx(wanted.mean_logprob, abs=1e-4)
            assert names["confidence"](mean_logprob, fit, cross) == pytest.approx(wanted.confidence, abs=1e-4)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("json", "toml")], ids=str)
def test_json_and_toml_can_be_read(block: Block) -> None:
    read = json.loads if block.language == "json" else tomllib.loads
    assert read(block.text)


def test_every_language_of_a_block_is_one_that_is_checked() -> None:
    known = {"python", "bash", "sh", "console", "json", "toml", "plain", "indented"}
    assert {str(block): block.language for block in BLOCKS if block.language not in known} == {}


def test_links_lead_to_files_of_the_repository() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:\n")[2]
    assert [page.name for page in PAGES[2:] if f": {page.name}\n" not in site] == []


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    shown = set(
        re.findall(r"^::: tellapart\.(?:\w+\.)?(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    )
    errors = {name for name in tellapart.__all__ if name.endswith("Error")}
    assert "errors" in shown
    assert set(tellapart.__all__) - errors - {"__version__"} <= shown


def test_the_drawings_are_those_that_the_script_draws() -> None:
    path = ROOT / "docs" / "drawings" / "draw.py"
    names: dict[str, Any] = {"__name__": "draw", "__file__": str(path)}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    for name, draw in names["DRAWINGS"].items():
        assert path.with_name(name).read_text(encoding="utf-8") == draw(), (
            f"run docs/drawings/draw.py for {name}"
        )
