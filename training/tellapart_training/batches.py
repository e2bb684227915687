"""From caption records to batches of tensors, each a function of (seed, epoch, step) alone.

Axis letters: b images of a process's share, c captions per image, t tokens, s pixels, N image tokens, C
channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tellapart.errors import DataError
from tellapart_training.augment import Truths, augment, keyed_generator, truths_of
from tellapart_training.config import AugmentConfig
from tellapart_training.data import CaptionRecord
from tellapart_training.features import FeatureArray, PixelArray

TextEncoder = Callable[[str], list[int]]


@dataclass(frozen=True)
class Share:
    """Which part of every batch is this process's."""

    rank: int = 0
    processes: int = 1


class RowOrder(Protocol):
    """An order of images other than a plain permutation; `bag_order.BagOrder` is one."""

    def steps(self, epoch: int) -> int:
        """Batches of an epoch."""

    def rows(self, epoch: int, step: int, part: int, share: Share) -> list[int]:
        """The images of one share of a batch."""


@dataclass(frozen=True)
class CaptionedImages:
    """Images with their captions as ids.

    Attributes:
        records: normalised; images without captions have none.
        ids: for each image, each caption's ids `[CLS] ... [SEP]`.
        text_keys: for each image, each caption's number; equal for equal texts.
        truths: what augmentation must leave alone.
        pixels: (n, s, s, 3) uint8, or None where features stand for them.
        features: (n, views, N, C) float16, or None.
    """

    records: Sequence[CaptionRecord]
    ids: Sequence[Sequence[Sequence[int]]]
    text_keys: Sequence[Sequence[int]]
    truths: Sequence[Truths]
    pixels: PixelArray | None
    features: FeatureArray | None

    def __len__(self) -> int:
        return len(self.records)


def captioned_images(
    records: Sequence[CaptionRecord],
    encode: TextEncoder,
    *,
    pixels: PixelArray | None = None,
    features: FeatureArray | None = None,
) -> CaptionedImages:
    """Tokenize once and note what each image's captions forbid."""
    return CaptionedImages(
        records=records,
        ids=[[encode(caption) for caption in record.captions] for record in records],
        text_keys=[[text_key(caption) for caption in record.captions] for record in records],
        # Of an image that nobody described nothing is known to survive a mirror or another colour.
        truths=[
            truths_of(record.captions) if record.captions else Truths(sides=True, colours=True)
            for record in records
        ],
        pixels=pixels,
        features=features,
    )


def text_key(caption: str) -> int:
    """A number that stands for the text, the same in every process."""
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:7], "big")


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Rows of ids padded at the end, (len(rows), longest) int64."""
    longest = max((len(row) for row in rows), default=0)
    padded = [[*row, *[pad_id] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.int64).view(len(rows), longest)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of `count` rows for an epoch."""
    order: list[int] = torch.randperm(count, generator=keyed_generator(seed, "order", epoch)).tolist()
    return order


def share_of_batch(
    order: Sequence[int], *, step: int, part: int, batch_size: int, accumulate: int, share: Share
) -> list[int]:
    """The rows of one process's share of one part of the `step`-th batch."""
    size = batch_size // accumulate // share.processes
    start = step * batch_size + part * (batch_size // accumulate) + share.rank * size
    return list(order[start : start + size])


def fitting_batch_size(asked: int, count: int, *, accumulate: int, processes: int) -> int:
    """The batch size for `count` rows: as asked, or smaller where there are fewer rows.

    Raises:
        DataError: it cannot be shared evenly between processes and accumulated parts.
    """
    unit = accumulate * processes
    size = min(asked, count // unit * unit)
    if size == 0 or size % unit:
        raise DataError(
            f"a batch of {asked} from {count} rows cannot be cut evenly into {accumulate} parts "
            f"for {processes} processes: change optimizer.batch_size, or add data"
        )
    return size


@dataclass(frozen=True)
class ImageBatches:
    """Batches of images with `captions_per_image` captions each; 0 leaves captions out.

    `order` replaces the permutation of each epoch; `max_steps` ends an epoch early (0: not).
    """

    data: CaptionedImages
    config: AugmentConfig
    seed: int
    batch_size: int
    accumulate: int
    captions_per_image: int
    pad_id: int
    share: Share
    device: torch.device
    order: RowOrder | None = None
    max_steps: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of a permutation; the rest of it waits for another epoch."""
        return min(len(self.data) // self.batch_size, self.max_steps or len(self.data))

    def steps(self, epoch: int) -> int:
        """Batches of one epoch."""
        return self.order.steps(epoch) if self.order else self.steps_per_epoch

    def rows(self, epoch: int, step: int, part: int, *, share: Share | None = None) -> list[int]:
        """The images of one share of a batch, as rows of `data`; this process's share by default."""
        share = share or self.share
        if self.order:
            return self.order.rows(epoch, step, part, share)
        return share_of_batch(
            epoch_order(len(self.data), self.seed, epoch), step=step, part=part,
            batch_size=self.batch_size, accumulate=self.accumulate, share=share,
        )  # fmt: skip

    def rows_of_all(self, epoch: int, step: int, part: int) -> list[int]:
        """The images of every process's share, in rank order."""
        count = self.share.processes
        return [
            row for rank in range(count) for row in self.rows(epoch, step, part, share=Share(rank, count))
        ]

    def batch(self, epoch: int, step: int, part: int) -> dict[str, Tensor | None]:
        """One share of a batch.

        Returns:
            pixels (b, s, s, 3) uint8 or None, features (b, N, C) float32 or None, ids (b * c, t) int64,
            owners (b * c,) int64 row of each caption's image, text_keys (b * c,) int64.
        """
        rows = self.rows(epoch, step, part)
        ids: list[Sequence[int]] = []
        keys: list[int] = []
        owners: list[int] = []
        for place, row in enumerate(rows):
            for choice in self._choices(epoch, row):
                ids.append(self.data.ids[row][choice])
                keys.append(self.data.text_keys[row][choice])
                owners.append(place)
        pixels, features = self._look(epoch, rows)
        return {
            "pixels": pixels,
            "features": features,
            "ids": pad_ids(ids, self.pad_id).to(self.device),
            "owners": torch.tensor(owners, dtype=torch.int64).to(self.device),
            "text_keys": torch.tensor(keys, dtype=torch.int64).to(self.device),
        }

    def _choices(self, epoch: int, row: int) -> list[int]:
        # An image with fewer captions than asked repeats some: every process then holds equally many.
        count = len(self.data.ids[row])
        if not count:
            return []
        order = torch.randperm(count, generator=keyed_generator(self.seed, "captions", epoch, row)).tolist()
        return [order[index % count] for index in range(self.captions_per_image)]

    def _look(self, epoch: int, rows: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        if self.data.features is not None:
            views = self.data.features.shape[1]
            picks = [
                int(torch.randint(views, (1,), generator=keyed_generator(self.seed, "pick", epoch, row)))
                for row in rows
            ]
            return None, torch.from_numpy(np.asarray(self.data.features[rows, picks], dtype=np.float32)).to(
                self.device
            )
        if self.data.pixels is None:
            raise DataError(
                "images without pixels or features cannot be trained on: build one of the two caches"
            )
        pixels = torch.from_numpy(np.asarray(self.data.pixels[rows])).to(self.device)
        keys = [keyed_generator(self.seed, "augment", epoch, row) for row in rows]
        return augment(pixels, self.config, [self.data.truths[row] for row in rows], keys), None


@dataclass(frozen=True)
class TextBatches:
    """Batches of texts alone."""

    ids: Sequence[Sequence[int]]
    seed: int
    batch_size: int
    accumulate: int
    pad_id: int
    share: Share
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; the rest of the order waits for another epoch."""
        return len(self.ids) // self.batch_size

    def batch(self, epoch: int, step: int, part: int) -> dict[str, Tensor]:
        """One share of a batch: ids (b, t) int64."""
        order = epoch_order(len(self.ids), self.seed, epoch)
        rows = share_of_batch(
            order,
            step=step,
            part=part,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            share=self.share,
        )
        return {"ids": pad_ids([self.ids[row] for row in rows], self.pad_id).to(self.device)}
