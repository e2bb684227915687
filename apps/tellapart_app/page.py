"""The page of `tellapart app`: Gradio, on this machine alone.

Gradio is a guest that likes to phone home and to fetch fonts; both are switched off before it is imported. It
answers at 127.0.0.1 only. What is dropped in lies in a scratch folder that goes when the command ends.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from tellapart.captioner import Captioner
from tellapart.errors import UsageError
from tellapart_app.answers import STYLE, Answers

__all__ = ["build_page", "launch", "serve"]

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}


_MODES = (
    "contrast steers each photo's words away from what the others would say; rerank takes the most telling "
    "of several captions."
)


def _gradio(scratch: str) -> Any:
    """Gradio, told to be quiet before it looks at its environment."""
    os.environ.update(_QUIET, GRADIO_TEMP_DIR=scratch)
    import gradio

    return gradio


def build_page(answers: Answers, *, scratch: str) -> Any:
    """The page, not served yet.

    Args:
        answers: what its buttons call.
        scratch: folder for what is dropped in.

    Returns:
        A `gradio.Blocks`.
    """
    gr = _gradio(scratch)

    def files(label: str) -> Any:
        return gr.File(label=label, file_count="multiple", file_types=["image"])

    with gr.Blocks(title="tellapart", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# tellapart\nCaptions that tell pictures apart. Everything stays on this machine.")
        with gr.Tab("Caption"):
            dropped = files("Photos")
            told = gr.HTML()
            dropped.change(answers.captions, dropped, told, show_progress="minimal", api_visibility="private")
        with gr.Tab("Bag"):
            alike = files("Photos that look alike")
            mode = gr.Radio(["contrast", "rerank"], value="contrast", label="Mode", info=_MODES)
            button = gr.Button("Tell them apart", variant="primary")
            result = gr.HTML()
            button.click(answers.bag, [alike, mode], result, api_visibility="private")
        with gr.Tab("Search"):
            folder = "" if answers.photos is None else f"; without any, {answers.photos} is searched"
            pile = files(f"Photos to search{folder}")
            query = gr.Textbox(label="What to look for", placeholder="a dog in the snow")
            look = gr.Button("Search", variant="primary")
            found = gr.HTML()
            for event in (look.click, query.submit):
                event(answers.search, [pile, query], found, api_visibility="private")
        with gr.Tab("TrueMatch"):
            gr.Markdown(
                "Mines bags of three look-alikes out of the photos, captions each photo alone, and asks the "
                "retriever to pick it by its caption."
            )
            many = files("Photos, the more the better")
            measure = gr.Button("Measure", variant="primary")
            report = gr.HTML()
            measure.click(answers.truematch, many, report, api_visibility="private")
    return page


def launch(page: Any, *, port: int | None, browser: bool) -> str:
    """Serve the page in threads of its own and come back; `page.close()` ends it.

    Returns:
        The address, at 127.0.0.1.

    Raises:
        UsageError: the port is taken.
    """
    import gradio as gr

    plain = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.queue(default_concurrency_limit=1)
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            inbrowser=browser,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            theme=plain,
            css=STYLE,
        )
    except OSError as error:  # Gradio's message names an option that we do not have
        raise UsageError(f"port {port or 'from 7860 on'} is taken; name another one with --port") from error
    return str(address)


def serve(*, photos: Path | None, model: Path | None, port: int | None, browser: bool) -> int:
    """Serve until Ctrl-C.

    Raises:
        UsageError: `photos` is no folder, or the port is taken.
        TellapartError: the bundle.
    """
    if photos is not None and not photos.is_dir():
        raise UsageError(f"--photos {photos} is not a folder")
    with tempfile.TemporaryDirectory(prefix="tellapart-app-") as scratch, Captioner.open(model) as captioner:
        page = build_page(Answers(captioner, photos=photos), scratch=scratch)
        address = launch(page, port=port, browser=browser)
        print(f"tellapart: {address} (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)
    return 0
