"""What the captioner's and the retriever's stage share: data, batches, evaluation while training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tellapart.errors import DataError
from tellapart_model.compact import CompactPair
from tellapart_training.batches import (
    CaptionedImages,
    ImageBatches,
    Share,
    captioned_images,
    fitting_batch_size,
    pad_ids,
)
from tellapart_training.captioning import captions_of
from tellapart_training.config import AugmentConfig, ImageStageConfig
from tellapart_training.data import (
    CaptionRecord,
    ReadReport,
    normalised_records,
    read_captions,
    split_records,
)
from tellapart_training.features import Trunk, feature_cache, onnx_trunk
from tellapart_training.images import ImageSource, pixel_cache, say_on_stderr
from tellapart_training.loop import make_accelerator
from tellapart_training.losses import caption_inputs_and_labels, mle_loss
from tellapart_training.metrics import cider_d, metric_words
from tellapart_training.pair import TrainedPair, open_pair, trunk_identity
from tellapart_training.recall import recall_both_ways
from tellapart_training.run_folder import RunFolder

Say = Callable[[str], None]


@dataclass(frozen=True)
class ImageData:
    """Training images, held-back images, and where both came from."""

    train: CaptionedImages
    tuning: CaptionedImages | None


class OpenedStage(NamedTuple):
    """What every stage over images starts with."""

    accelerator: Accelerator
    folder: RunFolder
    pair: TrainedPair
    data: ImageData


def open_image_stage(
    config: ImageStageConfig, *, name: str, resume: bool, trunk: Trunk | None
) -> OpenedStage:
    """Seed, claim the run folder, open the starting checkpoint, and make its data ready.

    Args:
        config: resolved.
        name: of the stage.
        resume: the run folder may hold a run of these settings.
        trunk: see `load_image_data`.

    Raises:
        TellapartError: config, data or checkpoint that cannot be used.
    """
    torch.manual_seed(config.seed)
    accelerator = make_accelerator(config)
    folder = RunFolder(config, stage=name, resume=resume)
    pair = open_pair(Path(config.init))
    say = say_on_stderr if accelerator.is_main_process else lambda _text: None
    return OpenedStage(
        accelerator, folder, pair, load_image_data(config, pair, accelerator, trunk=trunk, say=say)
    )


def load_image_data(
    config: ImageStageConfig, pair: TrainedPair, accelerator: Accelerator, *, trunk: Trunk | None, say: Say
) -> ImageData:
    """Read captions, decode images once, compute features once where the trunk does not learn.

    Args:
        config: of the stage.
        pair: tokenizer, preprocessing and the trunk's weights.
        accelerator: the main process fills the caches, the others wait and read them.
        trunk: stands for the pair's trunk where `config.trunk` is "frozen"; None takes `features_from` or
            the pair's.
        say: receives progress lines.

    Raises:
        DataError: captions or images that cannot be used.
        ConfigError: `features_from` that cannot be used.
    """
    report = ReadReport()
    records = read_captions(Path(config.data.captions), bad_lines=config.data.bad_lines, report=report)
    records = normalised_records(records, min_words=config.data.min_words, report=report)
    train, tuning = split_records(
        records,
        train_splits=config.data.train_splits,
        tuning_images=config.data.tuning_images,
        seed=config.seed,
    )
    train = train[: config.data.limit_images or len(train)]
    if report.summary():
        say(f"{config.data.captions}: {report.summary()}")
    say(f"{len(train)} images to train on, {len(tuning)} held back")
    frozen = (trunk or _frozen_trunk(config, pair, accelerator)) if config.trunk == "frozen" else None
    source = ImageSource(Path(config.data.images))

    def ready(chosen: Sequence[CaptionRecord], views: int) -> CaptionedImages:
        names = [record.image for record in chosen]
        folder = Path(config.data.cache)
        pixels = pixel_cache(source, names, pair.preprocessing, folder, say=say)
        data = captioned_images(chosen, pair.encode, pixels=pixels)
        if frozen is None:
            return data
        augmentation = config.augment if config.augment.enabled else AugmentConfig(enabled=False)
        identity = hashlib.sha256(f"{source.identity}{names}{pair.preprocessing}".encode()).hexdigest()
        features = feature_cache(
            frozen, pixels, data.truths, pixels_identity=identity,
            views=views if config.augment.enabled else 1, config=augmentation,
            seed=config.seed, folder=folder, say=say,
        )  # fmt: skip
        return captioned_images(chosen, pair.encode, features=features)

    with accelerator.main_process_first():
        return ImageData(ready(train, config.views), ready(tuning, 1) if tuning else None)


def _frozen_trunk(config: ImageStageConfig, pair: TrainedPair, accelerator: Accelerator) -> Trunk:
    if config.features_from:
        return onnx_trunk(Path(config.features_from))
    network = pair.network

    def encode(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        network.eval().to(accelerator.device)
        with torch.inference_mode():
            features = network.features(torch.from_numpy(pixels).to(accelerator.device))
        return np.asarray(features.float().cpu().numpy())

    return Trunk(encode, trunk_identity(pair))


class ImageStage:
    """A stage over captioned images; `mle` and `retriever` add their objective and what selects."""

    def __init__(
        self,
        *,
        name: str,
        config: ImageStageConfig,
        pair: TrainedPair,
        objective: nn.Module,
        data: ImageData,
        accelerator: Accelerator,
        selection: str,
        captions: bool,
    ) -> None:
        self.name, self.config, self.pair, self.data = name, config, pair, data
        self.network, self.objective = pair.network, objective
        self.selection, self.higher_is_better = selection, True
        self.device = accelerator.device
        self._captions = captions
        if config.trunk == "tuned":
            pair.network.trunk.freeze_before(config.trunk_first_block, depthwise=config.trunk_depthwise)
        share = Share(accelerator.process_index, accelerator.num_processes)
        accumulate = config.optimizer.accumulate
        self.batches = ImageBatches(
            data=data.train, config=config.augment, seed=config.seed,
            batch_size=fitting_batch_size(
                config.optimizer.batch_size, len(data.train), accumulate=accumulate, processes=share.processes
            ),
            accumulate=accumulate, captions_per_image=config.captions_per_image,
            pad_id=pair.tokenizer.pad_id, share=share, device=accelerator.device,
        )  # fmt: skip
        self.steps_per_epoch = self.batches.steps_per_epoch

    def batch(self, epoch: int, step: int, part: int) -> Mapping[str, Any]:
        """See `loop.Stage`."""
        return self.batches.batch(epoch, step, part)

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """See `loop.Stage`."""
        self.pair.save(folder, facts)

    def evaluate(self, epoch: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures on the held-back images.

        Returns:
            Recall both ways; for a captioner also the loss per token in nats without smoothing and CIDEr-D
            of greedy captions of the first `caption_images`; and samples of those captions.
        """
        del epoch
        if self.data.tuning is None:
            return {}, []
        with torch.inference_mode():
            return tuning_figures(
                self.pair, self.data.tuning, device=self.device, captions=self._captions,
                caption_images=self.config.loop.caption_images, sample_images=self.config.loop.sample_images,
            )  # fmt: skip


def batch_features(network: CompactPair, pixels: Tensor | None, features: Tensor | None) -> Tensor:
    """Features of a batch: given ones, or the trunk's of its pixels; (b, N, C).

    Raises:
        DataError: neither is there.
    """
    if features is not None:
        return features
    if pixels is None:
        raise DataError("a batch needs pixels or features: build one of the two caches")
    return network.features(pixels)


def image_features(pair: TrainedPair, data: CaptionedImages, rows: range, device: torch.device) -> Tensor:
    """Features of some images as they are, (b, N, C) float32."""
    if data.features is not None:
        return torch.from_numpy(np.asarray(data.features[rows.start : rows.stop, 0], dtype=np.float32)).to(
            device
        )
    pixels = np.array(data.pixels[rows.start : rows.stop])  # type: ignore[index]
    return pair.network.features(torch.from_numpy(pixels).to(device))


def tuning_figures(
    pair: TrainedPair,
    data: CaptionedImages,
    *,
    device: torch.device,
    captions: bool,
    caption_images: int,
    sample_images: int,
    batch_size: int = 32,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """See `ImageStage.evaluate`; the network must be in eval mode, gradients off."""
    images, texts, owners, written = [], [], [], []
    nats, tokens = 0.0, 0
    for start in range(0, len(data), batch_size):
        rows = range(start, min(start + batch_size, len(data)))
        features = image_features(pair, data, rows, device)
        images.append(pair.network.embed_features(features).float().cpu())
        flat = [ids for row in rows for ids in data.ids[row]]
        own = [row for row in rows for _ in data.ids[row]]
        ids = pad_ids(flat, pair.tokenizer.pad_id).to(device)
        texts.append(pair.network.embed_text(ids).float().cpu())
        owners.extend(own)
        if not captions:
            continue
        cross_kv = pair.network.cross_kv(features)
        inputs, labels = caption_inputs_and_labels(ids, pair.tokenizer.pad_id)
        index = torch.tensor(own, device=device) - start
        logits = pair.network.decoder(inputs, cross_kv.index_select(1, index))
        nats += float(mle_loss(logits, labels))
        tokens += int((labels >= 0).sum())
        if start < caption_images:
            written.extend(captions_of(pair, cross_kv))
    similarity = torch.cat(texts) @ torch.cat(images).T
    figures = recall_both_ways(similarity.numpy(), np.asarray(owners, dtype=np.int64))
    if not captions:
        return figures, []
    lines = written[:caption_images]
    references = [[metric_words(text) for text in record.captions] for record in data.records]
    figures = {"tuning_loss": nats / max(1, tokens), **figures}
    if lines:
        scores = cider_d([metric_words(line) for line in lines], references[: len(lines)])
        figures["cider_d"] = float(np.mean(scores))
    samples = [
        {"image": data.records[row].image, "caption": line, "references": list(data.records[row].captions)}
        for row, line in enumerate(lines[:sample_images])
    ]
    return figures, samples
