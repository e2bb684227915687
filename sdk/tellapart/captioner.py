"""Captioner: images in, sentences out.

    with Captioner.open() as captioner:
        print(captioner.caption("photo.jpg").text)

An image is a path, the bytes of a file, a PIL image, a (h, w, 3) uint8 RGB array, or a `View` that `look`
made: one vision pass then serves captions, embeddings and bags.

One captioner is safe from many threads, and gives the same captions there. After a fork it opens its graphs
anew in the child. It pickles as the path of its bundle and its options.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np

from tellapart.bag import BagMode, bag_options, judge_bag, spoken_options
from tellapart.bulk import in_order
from tellapart.bundle import Bundle
from tellapart.confidence import with_confidence
from tellapart.contrast import Contrast
from tellapart.engine import Engine
from tellapart.errors import ClosedError, ImageError, UsageError
from tellapart.plan import DecodePlan, greedy_plan, make_plan
from tellapart.presence import Presence
from tellapart.retriever import Retriever, require_kind
from tellapart.types import BagResult, Caption, DecodeOptions, ImageInput, RuntimeOptions, View
from tellapart.writer import sentence_case, stream_ids, write_captions, write_contrast


class Captioner:
    """Captions images with one bundle; a context manager, see the top of the module."""

    def __init__(self, engine: Engine) -> None:
        """Use `Captioner.open`."""
        require_kind(engine.bundle, "captioner")
        self._engine = engine
        self._closed = False

    @classmethod
    def open(
        cls, bundle: str | os.PathLike[str] | None = None, *, runtime: RuntimeOptions | None = None
    ) -> Captioner:
        """Open a bundle: every file is verified, graphs are loaded when they are first needed.

        Args:
            bundle: a folder or an uncompressed zip; None is the bundle inside the package.
            runtime: backend, providers, threads, largest image.

        Raises:
            BundleError: and its family: absent, damaged, newer, or not a captioner.
            BackendError: a backend or provider that was asked for is not there.
            MissingExtraError: no runtime is installed.
        """
        engine = Engine(bundle, runtime or RuntimeOptions())
        try:
            return cls(engine)
        except BaseException:
            engine.close()
            raise

    @property
    def bundle(self) -> Bundle:
        """The bundle at work."""
        return self._engine.bundle

    @property
    def retriever(self) -> Retriever:
        """A retriever on the same bundle and the same graphs; it ends with this captioner.

        Raises:
            BundleError: the bundle is no retriever.
            ClosedError: after `close`.
        """
        self._check_open()
        return Retriever(self._engine, owns_engine=False)

    def __enter__(self) -> Captioner:
        """The captioner itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Path and options; the graphs are opened again where this arrives."""
        return _reopen, (self._engine.path, self._engine.runtime)

    def close(self) -> None:
        """Release all graphs; further calls do nothing."""
        self._closed = True
        self._engine.close()

    def look(self, image: ImageInput | View) -> View:
        """One vision pass, to be used wherever an image is; a View comes back as it is.

        Nothing is kept here: the View is the caller's, a few hundred kB.

        Raises:
            ImageError: the image cannot be used.
            ShapeError: an array that is not (h, w, 3) uint8.
            UsageError: a View from another bundle.
            BackendError: the runtime failed.
            ClosedError: after `close`.
        """
        self._check_open()
        return self._engine.look(image)

    def caption(self, image: ImageInput | View, *, options: DecodeOptions | None = None) -> Caption:
        """Caption one image.

        Args:
            image: see the top of the module.
            options: how to search; what they leave at None is as the bundle says.

        Returns:
            The caption. Its `elapsed_ms` has "load" (opening the bundle and graphs, 0 once they are open),
            "preprocess" and "vision" (0 for a View), "decode", and "rerank" where the retriever chose.

        Raises:
            ImageError: the image cannot be used.
            ShapeError: an array that is not (h, w, 3) uint8.
            UsageError: a View from another bundle.
            BackendError: the runtime failed.
            ClosedError: after `close`.
        """
        plan = self._plan(options)
        [caption] = self._write([self._look_once(image)], plan)
        return caption

    @overload
    def caption_many(
        self,
        images: Iterable[ImageInput | View],
        *,
        batch_size: int = ...,
        workers: int = ...,
        options: DecodeOptions | None = ...,
        on_error: Literal["raise"] = ...,
    ) -> Iterator[Caption]: ...

    @overload
    def caption_many(
        self,
        images: Iterable[ImageInput | View],
        *,
        batch_size: int = ...,
        workers: int = ...,
        options: DecodeOptions | None = ...,
        on_error: Literal["yield"],
    ) -> Iterator[Caption | ImageError]: ...

    def caption_many(
        self,
        images: Iterable[ImageInput | View],
        *,
        batch_size: int = 8,
        workers: int = 1,
        options: DecodeOptions | None = None,
        on_error: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Caption | ImageError]:
        """Caption images as they are asked for, in their order; each as `caption` would, token for token.

        Images of a batch are decoded side by side where the graph computes the same for a row in a batch and
        alone, and one after the other where it does not (dynamic INT8 quantization).

        Args:
            images: any iterable; at most `batch_size` are taken ahead of what was yielded.
            batch_size: images decoded side by side, from 1; with several workers each takes one at a time.
            workers: threads that each take an image from file to caption. Twice as many images ahead are
                taken from `images`, memory stays flat. Most come through on a captioner of `threads=1` with
                a worker for each core.
            options: how to search, for all.
            on_error: "raise" an ImageError when its turn comes, after the captions before it; "yield" it in
                the place of the caption and go on.

        Returns:
            An iterator of captions, with "yield" also of ImageErrors. `elapsed_ms` of a caption out of a
            batch is its share of the batch's decoding.

        Raises:
            UsageError: one image instead of several, `batch_size` or `workers` below 1, an unknown
                `on_error`, or a View from another bundle.
            ImageError: with "raise", in its turn.
            BackendError: the runtime failed.
            ClosedError: after `close`.
        """
        self._check_open()
        if isinstance(images, (str, bytes, os.PathLike, View)):
            raise UsageError(f"images must be several, got one {type(images).__name__}; use caption for one")
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        if workers < 1:
            raise UsageError(f"workers must be at least 1, got {workers}")
        if on_error not in ("raise", "yield"):
            raise UsageError(f"on_error must be 'raise' or 'yield', got {on_error!r}")
        plan = self._plan(options)
        if workers > 1:
            return self._caption_with(workers, iter(images), plan, on_error)
        return self._caption_batches(iter(images), batch_size, plan, on_error)

    def stream(
        self, image: ImageInput | View, *, options: DecodeOptions | None = None
    ) -> Generator[str, None, None]:
        """Caption one image greedily, piece by piece as words become certain.

        A word is handed out when the next one begins, as "t" may still become "t-shirt". All pieces together
        are the text of `caption` with `beams=1`. Closing the generator, or dropping it, cancels the rest.

        Args:
            image: see the top of the module.
            options: how to search; `beams` must be None or 1, `n_best` 1 and `temperature` 0.

        Yields:
            Text, at least one character.

        Raises:
            UsageError: options that do not stream.
            ImageError: the image cannot be used.
            BackendError: the runtime failed.
            ClosedError: after `close`.
        """
        self._check_open()
        plan = greedy_plan(options, self.bundle.manifest.decoding, self._engine.tokenizer)
        return self._stream(image, plan)

    def bag(
        self,
        images: Iterable[ImageInput | View],
        *,
        mode: BagMode = "plain",
        options: DecodeOptions | None = None,
    ) -> BagResult:
        """Caption look-alike images so that the captions tell them apart, and measure whether they do.

        Args:
            images: one or more; a bag of one is captioned as in "plain".
            mode: "contrast", all images are decoded together, each steered away from what its look-alikes
                would say; "rerank", the retriever chooses among several captions made of each image alone;
                "plain", each image alone. The rules are at the top of `tellapart.bag`.
            options: how to search. In "rerank" `n_best` is the number of candidates, 5 where it is 1; in
                "contrast" every beam is a candidate: `beams` steered and as many plain ones, 5 and 10 where
                it is None, and each of the two searches has `deadline_ms` for itself.

        Raises:
            UsageError: no image, an unknown mode, or options that the mode cannot follow.
            BundleError: the bundle is no retriever.
            ImageError: an image cannot be used; a bag is whole or not at all.
            BackendError: the runtime failed.
            ClosedError: after `close`.
        """
        retriever = self.retriever
        asked, options = options, bag_options(options, mode)
        plan = self._plan(options)
        # Which caption it is about is known when one was chosen.
        options = replace(options, confidence=False, min_confidence=None)
        if isinstance(images, (str, bytes, os.PathLike, View)):
            raise UsageError(f"a bag is an iterable of images, got one {type(images).__name__}")
        views = [self.look(image) for image in images]
        image_rows = retriever.embed_images(views)
        if len(views) == 1:
            mode, options = "plain", replace(asked or DecodeOptions(), confidence=False, min_confidence=None)
        groups: list[list[Caption]] = []
        spoken: list[list[Caption]] = []
        presence: Presence | None = None
        if mode == "contrast":
            presence = self._engine.presence()
            if views:
                alone = self._plan(spoken_options(asked))
                found = write_contrast(self._engine, image_rows, views, plan, Contrast(), spoken=alone)
                groups, spoken = found.beside_spoken(shorter=presence is not None), found.spoken
        else:
            captions = list(self.caption_many(views, options=options))
            groups = [
                [caption, *caption.alternatives] if mode == "rerank" else [caption] for caption in captions
            ]
        result = judge_bag(
            groups, image_rows, retriever.embed_texts, mode=mode, spoken=spoken, presence=presence
        )
        if mode == "plain":
            result = replace(result, captions=tuple(captions))
        if plan.calibration is None:
            return result
        sure = [
            with_confidence(
                caption, view, float(cosine), calibration=plan.calibration, least=plan.min_confidence
            )
            for caption, view, cosine in zip(
                result.captions, views, np.diagonal(result.similarity), strict=True
            )
        ]
        return replace(result, captions=tuple(sure))

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(
                "this captioner was closed; open another one, or use it inside its `with` block"
            )
        self._engine.check_open()

    def _look_once(self, image: ImageInput | View) -> View:
        """As `look`, and a View that the caller brought counts no time: it was spent before."""
        view = self.look(image)
        return replace(view, elapsed_ms={}) if view is image else view

    def _caption_batches(
        self, images: Iterator[ImageInput | View], size: int, plan: DecodePlan, on_error: str
    ) -> Iterator[Caption | ImageError]:
        while True:
            seen: list[View | ImageError] = []
            failure: ImageError | None = None
            for image in islice(images, size):
                try:
                    seen.append(self._look_once(image))
                except ImageError as error:
                    if on_error == "raise":
                        failure = error
                        break
                    seen.append(error)
            captions = self._write([view for view in seen if isinstance(view, View)], plan)
            for item in seen:
                yield next(captions) if isinstance(item, View) else item
            if failure is not None:
                raise failure
            if not seen:
                return

    def _caption_with(
        self, workers: int, images: Iterator[ImageInput | View], plan: DecodePlan, on_error: str
    ) -> Iterator[Caption | ImageError]:
        def whole_way(image: ImageInput | View) -> Caption | ImageError:
            try:
                [caption] = self._write([self._look_once(image)], plan)
            except ImageError as error:
                return error
            return caption

        with closing(in_order(whole_way, images, workers=workers)) as results:
            for result in results:
                if isinstance(result, ImageError) and on_error == "raise":
                    raise result
                yield result

    def _plan(self, options: DecodeOptions | None) -> DecodePlan:
        manifest = self.bundle.manifest
        return make_plan(options, manifest.decoding, self._engine.tokenizer, manifest.confidence)

    def _write(self, views: Sequence[View], plan: DecodePlan) -> Iterator[Caption]:
        return write_captions(self._engine, lambda: self.retriever, views, plan, check_open=self._check_open)

    def _stream(self, image: ImageInput | View, plan: DecodePlan) -> Generator[str, None, None]:
        view = self.look(image)
        tokenizer = self._engine.tokenizer
        said = ""
        ids: list[int] = []
        for token in stream_ids(self._engine, view, plan):
            self._check_open()
            ids.append(token)
            # All but the last word: later pieces still join to it ("##s", "'", "-").
            certain = sentence_case(tokenizer.decode(ids)).rpartition(" ")[0]
            if len(certain) > len(said):
                yield certain[len(said) :]
                said = certain
        text = sentence_case(tokenizer.decode(ids))
        if len(text) > len(said):
            yield text[len(said) :]


def _reopen(path: str | None, runtime: RuntimeOptions) -> Captioner:
    return Captioner.open(path, runtime=runtime)
