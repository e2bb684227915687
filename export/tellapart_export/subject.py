"""What a family makes of a checkpoint: everything that the export needs to know about it, in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tellapart.manifest import Decoding, Preprocessing, Vocabulary
from tellapart_export.graphs import SourceGraph


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded checkpoint, cut into graphs, with the original network beside it to be compared with."""

    family: str
    """Its name in the registry."""

    kind: tuple[str, ...]
    """"captioner", "retriever", or both."""

    graphs: tuple[SourceGraph, ...]
    """One for each role that the kinds need."""

    preprocessing: Preprocessing
    """How a photo becomes the input of the vision graph."""

    vocabulary: Vocabulary
    """The page about the words."""

    files: Mapping[str, bytes]
    """The files that the page names."""

    decoding: Decoding = dataclasses.field(default_factory=Decoding)
    """Defaults of the bundle, where the user of the export names none."""

    positions: int = 0
    """Longest past that the decoder can take, P; for a captioner."""

    logits: Callable[[Tensor, Tensor], Tensor] | None = None
    """The original network, whole sequences without a cache: pixels (b, s, s, 3) uint8 and ids (b, T) from
    the start mark on -> (b, T, V); row t predicts token t + 1. For a captioner."""

    embed_images: Callable[[Tensor], Tensor] | None = None
    """The original network: pixels (b, s, s, 3) uint8 -> (b, E) unit rows. For a retriever."""

    embed_texts: Callable[[Tensor], Tensor] | None = None
    """The original network: ids (1, T) of one text, marks included -> (1, E) unit rows. For a retriever."""

    texts: Sequence[Sequence[int]] = ()
    """Ids of texts of several lengths, marks included, to compare on. For a retriever."""

    pad_id: int = 0
    """Fills a batch of texts."""

    parameters: int
    """How many numbers the network has, shared ones counted once."""

    checkpoint_sha256: str
    """Identity of the checkpoint."""

    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the manifest shall say about where it came from, plain JSON."""

    licence: str = ""
    """As the checkpoint says; "" where it says nothing."""

    remarks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further proofs that the family made while it opened the checkpoint, for the parity report."""
