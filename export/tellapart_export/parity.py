"""Is the bundle the network? Largest gaps per graph, the same greedy tokens photo for photo, the same rows.

The graphs run as on a device: opened from the bundle by `tellapart.backends`, called by
`tellapart.graphs`, decoded by `tellapart.decode` under the rules of the bundle. The network is the
original one, whole sequences without a
cache: if at every place of the device's caption its likeliest token is the one that the device took, its own
greedy caption is the same, and its logits there are those to compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart.backends import Session
from tellapart.decode import Rules, greedy
from tellapart.errors import ParityError
from tellapart.graphs import DecoderGraph, TextGraph, VisionGraph
from tellapart.kv_cache import KVCache
from tellapart.types import PixelArray
from tellapart_export.graphs import BARRED, SourceGraph
from tellapart_export.subject import Subject

RELATIVE_GAP = 1e-3
"""Largest gap allowed, as a share of the largest value (or of 1): float32 in another order of sums."""

LEAST_COSINE = 0.99999

TIE = 1e-4
"""Two tokens whose logits in the network are no further apart than this share of the largest (or of 1) are
a draw that rounding decides; such a photo is counted as a draw, neither as equal nor as a failure."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What counts as equal."""

    relative: float = RELATIVE_GAP
    cosine: float = LEAST_COSINE
    tie: float = TIE
    exact: bool = True
    """Greedy tokens have to be equal; otherwise photos where they differ are counted."""


FLOAT32 = Tolerance()
HALF = Tolerance(relative=5e-2, cosine=0.999, exact=False)
"""For results rounded to float16 at every operation: ten bits, and what grows of them through the layers."""

_ROWS_BATCH = 8  # photos whose rows the network makes side by side


@dataclasses.dataclass(frozen=True)
class GraphParity:
    """How far one output of one graph is from the network's."""

    output: str
    max_abs: float
    mean_abs: float
    cosine: float


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Where a greedy caption leaves the network's: photo and token counted from 1, and both ids."""

    photo: int
    token: int
    network: int
    graphs: int

    def to_fields(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON values, with the photo's name out of `names` if there are any."""
        return {**dataclasses.asdict(self), **({"name": names[self.photo - 1]} if names else {})}


@dataclasses.dataclass
class TokenParity:
    """Greedy captions of device and network."""

    equal: int = 0
    """Photos whose captions are the same, token for token."""

    draws: int = 0
    """Photos where the network itself could not tell two tokens apart, see `TIE`."""

    others: int = 0
    """Photos whose captions differ; an error unless the tolerance says otherwise."""

    tokens: int = 0
    """Tokens compared, end marks counted."""

    max_logit_error: float = 0.0
    """Largest gap of a logit over all of them, each with the whole vocabulary."""

    first_divergence: Divergence | None = None
    """The first photo that is not equal, a draw or not; None where all are."""

    @property
    def photos(self) -> int:
        """Photos compared."""
        return self.equal + self.draws + self.others


def check_graph(
    source: SourceGraph,
    session: Session,
    feeds: Iterable[Mapping[str, Any]],
    *,
    tolerance: Tolerance = FLOAT32,
) -> list[GraphParity]:
    """Compare one graph with the module that it was exported from.

    Args:
        source: the network's side.
        session: the graph's side.
        feeds: numpy inputs by name; each is run on both sides.
        tolerance: how far they may be apart.

    Returns:
        One entry per output: the worst over all feeds, the mean gap averaged.

    Raises:
        ParityError: a gap too large, or a shape or dtype that differs.
    """
    worst: dict[str, list[GraphParity]] = {}
    module = source.module.eval()
    for feed in feeds:
        with torch.no_grad():
            wanted = module(*(torch.from_numpy(feed[tensor.name]) for tensor in source.spec.inputs))
        rows = wanted if isinstance(wanted, tuple) else (wanted,)
        given = session.run(feed)
        for tensor, row in zip(source.spec.outputs, rows, strict=False):
            worst.setdefault(tensor.name, []).append(
                find_gap(f"{source.spec.role}.{tensor.name}", row.numpy(), given[tensor.name], tolerance)
            )
    return [
        GraphParity(
            entries[0].output,
            max(entry.max_abs for entry in entries),
            float(np.mean([entry.mean_abs for entry in entries])),
            min(entry.cosine for entry in entries),
        )
        for entries in worst.values()
    ]


def find_gap(
    output: str, wanted: npt.NDArray[Any], given: npt.NDArray[Any], tolerance: Tolerance = FLOAT32
) -> GraphParity:
    """How far two arrays are apart; tokens that cannot come are left out of the measure.

    Raises:
        ParityError: too far, or another shape, dtype, or set of tokens that cannot come.
    """
    if wanted.shape != given.shape or wanted.dtype != given.dtype:
        raise ParityError(
            f"{output}: the network gives {wanted.shape} {wanted.dtype}, the graph {given.shape} "
            f"{given.dtype}"
        )
    barred = wanted == BARRED
    if not np.array_equal(barred, given == BARRED):
        raise ParityError(f"{output}: network and graph rule out other tokens")
    a, b = wanted[~barred].astype(np.float64), given[~barred].astype(np.float64)
    gap = np.abs(a - b)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(a.any() == b.any())
    found = GraphParity(output, float(gap.max()), float(gap.mean()), min(cosine, 1.0))
    allowed = tolerance.relative * max(1.0, float(np.abs(a).max()))
    # Written so that a NaN fails.
    if not (found.max_abs <= allowed and found.cosine >= tolerance.cosine):
        raise ParityError(
            f"{output}: differs from the network by up to {found.max_abs:.2e} (at most {allowed:.2e} "
            f"allowed), cosine {found.cosine:.6f}"
        )
    return found


def feeds_for(subject: Subject, source: SourceGraph, pixels: PixelArray) -> list[dict[str, Any]]:
    """Inputs that reach the corners of a graph: batches of 1 to 3, no past and the longest, padded texts.

    Args:
        subject: what is exported.
        source: one of its graphs.
        pixels: (n, s, s, 3) uint8, n at least 3, for the vision graph.
    """
    if source.spec.role == "vision":
        return [{"pixels": pixels[:1]}, {"pixels": pixels[:3]}]
    if source.spec.role == "text":
        longest = max(map(len, subject.texts))
        ids = np.full((len(subject.texts), longest), subject.pad_id, np.int64)
        for row, text in enumerate(subject.texts):
            ids[row, : len(text)] = text
        return [{"ids": np.array([min(subject.texts, key=len)], np.int64)}, {"ids": ids}]
    draw = np.random.default_rng(0)
    rows, _, heads, image_tokens, width = map(_size, source.spec.inputs[2].shape)
    vocabulary = _size(source.spec.outputs[0].shape[1])
    return [
        {
            "ids": draw.integers(0, vocabulary, (batch, 1)),
            "past_kv": draw.standard_normal((rows, batch, heads, past, width)).astype(np.float32),
            "cross_kv": draw.standard_normal((rows, batch, heads, image_tokens, width)).astype(np.float32),
        }
        for batch, past in ((1, 0), (3, 0), (2, 1), (1, subject.positions))
    ]


class _Recorder:
    """A session that keeps the logits of each run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.backend, self.providers, self.threads = session.backend, session.providers, session.threads
        self.logits: list[npt.NDArray[Any]] = []

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        answer = self._session.run(feeds)
        self.logits.append(answer["logits"][0])
        return answer

    def run_quietly(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]] | None:
        return self._session.run_quietly(feeds)

    def close(self) -> None:
        self._session.close()


def check_tokens(
    subject: Subject,
    vision: Session,
    decoder: Session,
    pixels: Iterable[PixelArray],
    *,
    rules: Rules,
    tolerance: Tolerance = FLOAT32,
    watch: Callable[[TokenParity], None] = lambda found: None,
) -> TokenParity:
    """Greedy captions of device and network, token for token, and the logits behind them.

    Args:
        subject: the network's side.
        vision: session of the vision graph.
        decoder: session of the decoder graph.
        pixels: batches (b, s, s, 3) uint8.
        rules: of the bundle, as the device decodes by them.
        tolerance: how far logits may be apart, and whether tokens may differ.
        watch: receives the tally after every photo.

    Raises:
        ParityError: a caption or a logit differs.
    """
    found = TokenParity()
    recorder = _Recorder(decoder)
    eye, voice = VisionGraph(vision), DecoderGraph(recorder)
    for photo in (photo for batch in pixels for photo in batch):
        recorder.logits = []
        [hypothesis] = greedy(voice.step, KVCache.empty(eye.look(photo)[0]), rules=rules)
        said = [*hypothesis.ids, *([rules.end_id] if hypothesis.finished else [])]
        wanted, given = _network_logits(subject, photo, said, rules), np.stack(recorder.logits)
        _compare(found, said, wanted, given, rules, photo=found.photos + 1, tolerance=tolerance)
        watch(found)
    return found


def _network_logits(
    subject: Subject, photo: PixelArray, said: Sequence[int], rules: Rules
) -> npt.NDArray[Any]:
    """(t, V), the network's logits along what the device said of one photo."""
    if subject.logits is None:
        raise ParityError(f"the family {subject.family} gives no network to compare captions with")
    # The last token is what comes out, not what goes in.
    ids = torch.tensor([[rules.start_id, *said[:-1]]], dtype=torch.int64)
    with torch.no_grad():
        found: npt.NDArray[Any] = subject.logits(torch.from_numpy(photo[None]), ids).numpy()[0]
    return found


def _compare(
    found: TokenParity,
    said: Sequence[int],
    wanted: npt.NDArray[Any],
    given: npt.NDArray[Any],
    rules: Rules,
    *,
    photo: int,
    tolerance: Tolerance,
) -> None:
    """Add one photo to the tally."""
    barred = sorted({*rules.banned_ids})
    for place, token in enumerate(said):
        gap = find_gap(
            f"photo {photo}, token {place + 1}, logits", wanted[place][None], given[place][None], tolerance
        ).max_abs
        found.max_logit_error = max(found.max_logit_error, gap)
        found.tokens += 1
        row = wanted[place].astype(np.float64)
        row[barred] = -np.inf
        best = int(row.argmax())
        if best == token:
            continue
        if found.first_divergence is None:
            found.first_divergence = Divergence(photo, place + 1, network=best, graphs=token)
        if row[best] - row[token] <= tolerance.tie * max(1.0, float(np.abs(wanted[place]).max())):
            found.draws += 1
            return
        if not tolerance.exact:
            found.others += 1
            return
        raise ParityError(
            f"photo {photo}: after {list(said[:place])} the network says {best}, the graphs say {token}; "
            "greedy tokens have to be equal"
        )
    found.equal += 1


def check_rows(
    subject: Subject,
    vision: Session,
    text: Session,
    pixels: Iterable[PixelArray],
    *,
    tolerance: Tolerance = FLOAT32,
) -> dict[str, GraphParity]:
    """Embeddings of device and network, photo for photo and text for text.

    Raises:
        ParityError: a row differs.
    """
    if subject.embed_images is None or subject.embed_texts is None:
        raise ParityError(f"the family {subject.family} gives no network to compare embeddings with")
    eye, reader = VisionGraph(vision), TextGraph(text)
    images: list[GraphParity] = []
    for photos in _in_batches(pixels, _ROWS_BATCH):
        with torch.no_grad():
            wanted = subject.embed_images(torch.from_numpy(photos)).numpy()
        given = np.concatenate([eye.look(photo)[1] for photo in photos])
        images.append(find_gap("images", wanted, given, tolerance))
    texts: list[GraphParity] = []
    for ids in subject.texts:
        with torch.no_grad():
            row = subject.embed_texts(torch.tensor([ids])).numpy()
        texts.append(find_gap("texts", row, reader.embed(ids)[None], tolerance))
    return {entries[0].output: max(entries, key=lambda entry: entry.max_abs) for entries in (images, texts)}


def _in_batches(batches: Iterable[PixelArray], size: int) -> Iterator[PixelArray]:
    for batch in batches:
        for first in range(0, len(batch), size):
            yield batch[first : first + size]


def _size(axis: int | str) -> int:
    return axis if isinstance(axis, int) else 0
