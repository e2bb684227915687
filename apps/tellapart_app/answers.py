"""What the page answers, as HTML that loads nothing: captions, a bag, a search, a TrueMatch report.

Photos travel inside as small JPEGs, and everything that comes from outside is escaped. Reports are pages
of their own and are shown in a frame without scripts. An error that a user can meet becomes a sentence.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

from tellapart.captioner import Captioner
from tellapart.commands.arguments import build_parser
from tellapart.errors import ImageError, TellapartError, UsageError
from tellapart.image import load_image
from tellapart.pages import bag_page, photo_of
from tellapart.search import open_index
from tellapart.types import Caption, DecodeOptions, UnsureCaption

__all__ = ["STYLE", "Answers"]

STYLE = """
.told { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr));
  list-style: none; margin: 0; padding: 0; }
.told li { border: 1px solid var(--border-color-primary, #ccc); border-radius: .6rem; overflow: hidden;
  margin: 0; }
.told img { display: block;
  width: 100%; aspect-ratio: 4 / 3; object-fit: contain; margin: 0; }
.told p { display: block; margin: .5rem .9rem; } .told .small { font-size: .85rem; }
.told .unsure { font-style: italic; }
.frame { width: 100%; height: 75vh; border: 1px solid var(--border-color-primary, #ccc);
  border-radius: .6rem; }
"""


class Answers:
    """Answers over one open captioner; safe from several threads, as the captioner is."""

    def __init__(self, captioner: Captioner, *, photos: Path | None = None) -> None:
        """Keep what answers need.

        Args:
            captioner: open; also a retriever, or bags, search and TrueMatch answer with an error.
            photos: the only folder of this machine that a search may look into; None is none.
        """
        self._captioner, self.photos = captioner, photos

    def captions(self, paths: Sequence[str] | None) -> Iterator[str]:
        """The list of captions so far, again after each photo."""
        if not paths:
            yield ""
            return
        options = DecodeOptions()
        if self._captioner.bundle.manifest.confidence is not None:
            options = DecodeOptions(min_confidence="default")
        items: list[str] = []
        results = self._captioner.caption_many(paths, batch_size=1, options=options, on_error="yield")
        for path, result in zip(paths, results, strict=True):
            name = escape(Path(path).name)
            if isinstance(result, ImageError):
                items.append(f'<li><p>{name}</p><p class="small" role="alert">{escape(str(result))}</p></li>')
            else:
                items.append(
                    _card(path, result.text, _sureness(result), unsure=isinstance(result, UnsureCaption))
                )
            yield _list(items)

    def bag(self, paths: Sequence[str] | None, mode: str) -> str:
        """The page of a bag, in a frame."""
        return _answer(lambda: self._bag(paths or (), mode))

    def search(self, paths: Sequence[str] | None, query: str, top: int = 6) -> str:
        """The best of the photos given, or of the folder where there are none."""
        return _answer(lambda: self._search(paths or (), query, top))

    def truematch(self, paths: Sequence[str] | None) -> str:
        """A benchmark of bags of three out of the photos given, and its report in a frame."""
        return _answer(lambda: self._truematch(paths or ()))

    def _bag(self, paths: Sequence[str], mode: str) -> str:
        if len(paths) < 2:
            raise UsageError(f"a bag needs at least two photos to tell apart, got {len(paths)}")
        result = self._captioner.bag(paths, mode="contrast" if mode == "contrast" else "rerank")
        photos = [photo_of(Path(path).name, load_image(path)) for path in paths]
        bundle = self._captioner.bundle
        page = bag_page(result, photos, mode=mode, model=f"{bundle.manifest.name}, {bundle.sha256}")
        return _frame(page, "The bag: photos, captions and ranks")

    def _search(self, paths: Sequence[str], query: str, top: int) -> str:
        if not query.strip():
            raise UsageError("write what to look for, for example: a dog in the snow")
        retriever = self._captioner.retriever
        if paths:
            scores = retriever.embed_images(paths) @ retriever.embed_texts([query])[0]
            order = sorted(range(len(paths)), key=lambda place: -scores[place])[:top]
            found = [(str(paths[place]), float(scores[place])) for place in order]
        elif self.photos is not None:
            index = open_index(self.photos, retriever)
            matches = retriever.search(query, index, top=top)
            found = [(str(self.photos / match.name), match.score) for match in matches]
        else:
            raise UsageError("drop photos in, or start the page with a folder: tellapart app --photos FOLDER")
        return _list(
            [_card(path, Path(path).name, f"cosine {score:+.3f}", named=False) for path, score in found]
        )

    def _truematch(self, paths: Sequence[str]) -> str:
        if len(paths) < 3:
            raise UsageError(f"TrueMatch makes bags of three photos out of those given; got {len(paths)}")
        with tempfile.TemporaryDirectory(prefix="tellapart-") as scratch:
            photos = Path(scratch, "photos")
            photos.mkdir()
            for place, path in enumerate(paths):  # two folders may hold photos of one name
                shutil.copyfile(path, photos / f"{place:03}-{Path(path).name}")
            report = Path(scratch, "report.html")
            model = ["--model", str(self._captioner.bundle.root)]
            benchmark = str(Path(scratch, "benchmark"))
            _run(["truematch", "build", str(photos), "--out", benchmark, "--sizes", "3", *model])
            _run(["truematch", "run", benchmark, "--images", str(photos), "--html", str(report), *model])
            return _frame(report.read_text(encoding="utf-8"), "The TrueMatch report")


def _answer(make: Callable[[], str]) -> str:
    try:
        return make()
    except TellapartError as error:
        return f'<p role="alert">{escape(str(error))}</p>'


def _run(command: list[str]) -> None:
    """One of the SDK's commands, in this process; what it prints is of no use on a page."""
    args = build_parser().parse_args(command)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        importlib.import_module(args.module).run(args)


def _sureness(caption: Caption) -> str:
    if caption.confidence is None:
        return "no confidence in this model"
    unsure = "unsure, " if isinstance(caption, UnsureCaption) else ""
    return f"{unsure}confidence {caption.confidence:.0%}"


def _card(path: str, text: str, note: str, *, unsure: bool = False, named: bool = True) -> str:
    photo = photo_of(Path(path).name, load_image(path), longest_px=360)
    kind = ' class="unsure"' if unsure else ""
    note = f"{photo.name}, {note}" if named else note
    return (
        f'<li><img src="{escape(photo.data_uri)}" alt="{escape(text)}"><p{kind}>{escape(text)}</p>'
        f'<p class="small">{escape(note)}</p></li>'
    )


def _list(items: Sequence[str]) -> str:
    return f'<ul class="told" aria-live="polite">{"".join(items)}</ul>'


def _frame(page: str, title: str) -> str:
    # An empty sandbox: no scripts, no forms, no access to the page around it.
    return f'<iframe class="frame" sandbox="" title="{escape(title)}" srcdoc="{escape(page)}"></iframe>'
