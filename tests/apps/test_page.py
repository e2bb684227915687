"""The page in a real browser: photos go in, different captions and ranks come out, nobody is called.

Needs the extra `app`, playwright, and a Chromium of the system (Debian: `apt-get install chromium`).
TELLAPART_SCREENSHOTS names a folder for pictures to look at.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the extra `app` is not installed; `make test-app` brings it", allow_module_level=True)
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed; see `make test-app`"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this system: apt-get install chromium"
)

ROOT = Path(__file__).parents[2]
BAG = sorted(str(path) for path in (ROOT / "samples" / "bag").glob("*.jpg"))
PHOTOS = sorted(str(path) for path in (ROOT / "samples" / "photos").glob("*.jpg"))


def start(scratch: Path) -> tuple[subprocess.Popen[str], str]:
    """The command as a user starts it, in a process of its own; and where it serves."""
    rooms = os.pathsep.join(str(ROOT / room) for room in ("sdk", "apps"))
    process = subprocess.Popen(
        [sys.executable, "-m", "tellapart", "app", "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": rooms, "TMPDIR": str(scratch)},
        # Shells switch Ctrl-C off for what they start in the background, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("tellapart: http://127.0.0.1:")
    return process, line.split()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, where = start(tmp_path_factory.mktemp("scratch"))
    yield where
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


class Visit:
    """A tab, with what it asked for and what it complained of."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        tab.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)


@pytest.fixture
def visit(address: str) -> Iterator[Visit]:
    with sync_api.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 1100})
        visit = Visit(tab)
        tab.goto(address)
        yield visit
        browser.close()
    assert visit.complaints == []
    assert visit.hosts <= {"127.0.0.1", ""}  # "" is data: and blob:


def shoot(visit: Visit, name: str) -> None:
    """Keep a picture to look at, where TELLAPART_SCREENSHOTS names a folder."""
    if folder := os.environ.get("TELLAPART_SCREENSHOTS"):
        visit.tab.wait_for_timeout(800)  # Gradio fades what it has just filled in
        visit.tab.screenshot(path=Path(folder) / f"{name}.png")


def test_three_photos_get_three_different_captions(visit: Visit) -> None:
    visit.tab.set_input_files("input[type=file] >> nth=0", PHOTOS[:3])
    images = visit.tab.locator(".told img")
    sync_api.expect(images).to_have_count(3, timeout=30_000)
    texts = {images.nth(place).get_attribute("alt") for place in range(3)}
    assert len(texts) == 3
    assert all(len((text or "").split()) >= 3 for text in texts)
    sync_api.expect(visit.tab.get_by_text("confidence").first).to_be_visible()
    shoot(visit, "page_caption")


def test_a_bag_shows_its_ranks(visit: Visit) -> None:
    visit.tab.get_by_role("tab", name="Bag").click()
    visit.tab.set_input_files("input[type=file]:visible, [role=tabpanel]:visible input[type=file]", BAG)
    sync_api.expect(visit.tab.get_by_text("yellow").first).to_be_visible(timeout=15_000)
    visit.tab.get_by_role("button", name="Tell them apart").click()
    frame = visit.tab.frame_locator("iframe.frame")
    sync_api.expect(frame.locator(".rank")).to_have_count(3, timeout=30_000)
    assert all(text.startswith("rank ") for text in frame.locator(".rank").all_inner_texts())
    shoot(visit, "page_bag")


def test_search_puts_the_man_with_the_camera_first(visit: Visit) -> None:
    visit.tab.get_by_role("tab", name="Search").click()
    visit.tab.set_input_files("[role=tabpanel]:visible input[type=file]", PHOTOS)
    sync_api.expect(visit.tab.get_by_text("rocket").first).to_be_visible(timeout=15_000)
    visit.tab.get_by_label("What to look for").fill("a man takes a picture with a camera")
    visit.tab.get_by_role("button", name="Search").click()
    images = visit.tab.locator(".told img")
    sync_api.expect(images.first).to_have_attribute("alt", "cameraman.jpg", timeout=30_000)
    shoot(visit, "page_search")


def test_truematch_reports(visit: Visit) -> None:
    visit.tab.get_by_role("tab", name="TrueMatch").click()
    visit.tab.set_input_files("[role=tabpanel]:visible input[type=file]", [*BAG, *PHOTOS])
    sync_api.expect(visit.tab.get_by_text("rocket").first).to_be_visible(timeout=15_000)
    visit.tab.get_by_role("button", name="Measure").click()
    frame = visit.tab.frame_locator("iframe.frame")
    sync_api.expect(frame.get_by_text("recall@1").first).to_be_visible(timeout=60_000)
    shoot(visit, "page_truematch")


def test_the_command_serves_until_ctrl_c_and_leaves_nothing(tmp_path: Path) -> None:
    process, where = start(tmp_path)
    with urllib.request.urlopen(where, timeout=20) as answer:
        assert b"tellapart" in answer.read()
    assert list(tmp_path.glob("tellapart-app-*"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert list(tmp_path.glob("tellapart-app-*")) == []
