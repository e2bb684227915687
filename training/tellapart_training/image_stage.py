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

from tellapart.errors import ConfigError, DataError
from tellapart.guidance import null_image
from tellapart_model.captioner import CaptionNetwork
from tellapart_training.batches import (
    CaptionedImages,
    ImageBatches,
    RowOrder,
    Share,
    captioned_images,
    fitting_batch_size,
)
from tellapart_training.captioner import TrainedCaptioner, open_captioner, trunk_identity
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
from tellapart_training.run_folder import RunFolder
from tellapart_training.tuning import tuning_figures

Say = Callable[[str], None]


@dataclass(frozen=True)
class ImageData:
    """Training images and held-back images.

    Attributes:
        train: to learn from.
        tuning: held back, or None.
        null_features: (1, N, C) float32 of the null picture, where it is asked for and the trunk is frozen.
    """

    train: CaptionedImages
    tuning: CaptionedImages | None
    null_features: Tensor | None = None


class OpenedStage(NamedTuple):
    """What every stage over images starts with."""

    accelerator: Accelerator
    folder: RunFolder
    captioner: TrainedCaptioner
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
    captioner = open_captioner(Path(config.init))
    say = say_on_stderr if accelerator.is_main_process else lambda _text: None
    return OpenedStage(
        accelerator,
        folder,
        captioner,
        load_image_data(config, captioner, accelerator, trunk=trunk, say=say),
    )


def load_image_data(
    config: ImageStageConfig,
    captioner: TrainedCaptioner,
    accelerator: Accelerator,
    *,
    trunk: Trunk | None,
    say: Say,
) -> ImageData:
    """Read captions, decode images once, compute features once where the trunk does not learn.

    Args:
        config: of the stage.
        captioner: tokenizer, preprocessing and the trunk's weights.
        accelerator: the main process fills the caches, the others wait and read them.
        trunk: stands for the captioner's trunk where `config.trunk` is "frozen"; None takes `features_from`
            or the captioner's.
        say: receives progress lines.

    Raises:
        DataError: captions or images that cannot be used.
        ConfigError: `features_from` that cannot be used.
    """
    report = ReadReport()
    source = ImageSource(Path(config.data.images))
    if config.data.captions:
        records = read_captions(Path(config.data.captions), bad_lines=config.data.bad_lines, report=report)
        records = normalised_records(records, min_words=config.data.min_words, report=report)
    else:
        records = undescribed_records(source, split=config.data.train_splits[0])
    train, tuning = split_records(
        records,
        train_splits=config.data.train_splits,
        tuning_images=config.data.tuning_images,
        seed=config.data.seed,
    )
    train = train[: config.data.limit_images or len(train)]
    if report.summary():
        say(f"{config.data.captions}: {report.summary()}")
    say(f"{len(train)} images to train on, {len(tuning)} held back")
    frozen = (trunk or _frozen_trunk(config, captioner, accelerator)) if config.trunk == "frozen" else None

    def ready(chosen: Sequence[CaptionRecord], views: int) -> CaptionedImages:
        names = [record.image for record in chosen]
        folder = Path(config.data.cache)
        pixels = pixel_cache(source, names, captioner.preprocessing, folder, say=say)
        data = captioned_images(chosen, captioner.encode, pixels=pixels)
        if frozen is None:
            return data
        augmentation = config.augment if config.augment.enabled else AugmentConfig(enabled=False)
        identity = hashlib.sha256(f"{source.identity}{names}{captioner.preprocessing}".encode()).hexdigest()
        features = feature_cache(
            frozen, pixels, data.truths, pixels_identity=identity,
            views=views if config.augment.enabled else 1, config=augmentation,
            seed=config.data.seed, folder=folder, say=say,
        )  # fmt: skip
        return captioned_images(chosen, captioner.encode, features=features)

    null = None
    if frozen is not None and config.null_probability:
        null = torch.from_numpy(frozen.encode(null_image(captioner.preprocessing.image_px)[None]))
    with accelerator.main_process_first():
        return ImageData(ready(train, config.views), ready(tuning, 1) if tuning else None, null)


_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def undescribed_records(source: ImageSource, *, split: str) -> list[CaptionRecord]:
    """A record without captions for every image, in the order of their names.

    Args:
        source: folder or archive; other files in it are passed over.
        split: that the records are said to belong to.
    """
    names = [name for name in source.names() if name.lower().endswith(_IMAGE_ENDINGS)]
    return [CaptionRecord(name, split, ()) for name in names]


def _frozen_trunk(config: ImageStageConfig, captioner: TrainedCaptioner, accelerator: Accelerator) -> Trunk:
    if config.features_from:
        if captioner.network.architecture != "compact":
            raise ConfigError("features_from is for the compact pair: leave it empty for this checkpoint")
        return onnx_trunk(Path(config.features_from))
    network = captioner.network

    def encode(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        network.eval().to(accelerator.device)
        with torch.inference_mode():
            features = network.features(torch.from_numpy(pixels).to(accelerator.device))
        return np.asarray(features.float().cpu().numpy())

    return Trunk(encode, trunk_identity(captioner))


class ImageStage:
    """A stage over captioned images; `mle` and `retriever` add their objective and what selects."""

    def __init__(
        self,
        *,
        name: str,
        config: ImageStageConfig,
        captioner: TrainedCaptioner,
        objective: nn.Module,
        data: ImageData,
        accelerator: Accelerator,
        selection: str,
        captions: bool,
        captions_per_image: int | None = None,
        order: RowOrder | None = None,
        max_steps: int = 0,
    ) -> None:
        """Put the stage together.

        Args:
            name: of the stage.
            config: resolved.
            captioner: whose network is trained.
            objective: takes a batch.
            data: made ready by `load_image_data`.
            accelerator: of the run.
            selection: figure that picks the best epoch.
            captions: whether the captioner is measured.
            captions_per_image: other than the config's.
            order: of the images, other than random batches.
            max_steps: batches of an epoch at most; 0 takes all.
        """
        self.name, self.config, self.captioner, self.data = name, config, captioner, data
        self.network, self.objective = captioner.network, objective
        self.selection, self.higher_is_better = selection, True
        self.device = accelerator.device
        self._captions = captions
        if config.trunk == "tuned":
            captioner.network.freeze_before(config.trunk_first_block, depthwise=config.trunk_depthwise)
        share = Share(accelerator.process_index, accelerator.num_processes)
        per_image = config.captions_per_image if captions_per_image is None else captions_per_image
        accumulate = config.optimizer.accumulate
        self.batches = ImageBatches(
            data=data.train, config=config.augment, seed=config.seed,
            batch_size=fitting_batch_size(
                config.optimizer.batch_size, len(data.train), accumulate=accumulate, processes=share.processes
            ),
            accumulate=accumulate,
            captions_per_image=per_image,
            pad_id=captioner.marks.pad, share=share, device=accelerator.device,
            order=order, max_steps=max_steps,
        )  # fmt: skip
        self.steps_per_epoch = [self.batches.steps(epoch) for epoch in range(config.optimizer.epochs)]

    def batch(self, epoch: int, step: int, part: int) -> Mapping[str, Any]:
        """See `loop.Stage`."""
        return self.batches.batch(epoch, step, part)

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """See `loop.Stage`."""
        self.captioner.save(folder, facts)

    def evaluate(self, epoch: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Figures on the held-back images.

        Returns:
            Figures, see `tuning_figures` and `caption_figures`, and samples of the captions.
        """
        del epoch
        if self.data.tuning is None:
            return {}, []
        with torch.inference_mode():
            found = tuning_figures(
                self.captioner, self.data.tuning, device=self.device, captions=self._captions,
                caption_images=self.config.loop.caption_images, sample_images=self.config.loop.sample_images,
            )  # fmt: skip
            return {**found.figures, **self.caption_figures(found.lines)}, found.samples

    def caption_figures(self, lines: Sequence[str]) -> dict[str, float]:
        """Further figures of a stage, from the greedy captions of the first tuning images."""
        del lines
        return {}


class NullPicture:
    """Shows the decoder, now and then, a picture that says nothing instead of an image (method 9.4)."""

    def __init__(self, image_px: int, probability: float, features: Tensor | None) -> None:
        """Keep the picture.

        Args:
            image_px: its size.
            probability: chance for each image; 0 never shows it.
            features: (1, N, C) of it; None asks the trunk, which learns, in every step.
        """
        # No module with buffers: data-parallel training would send them around in every step.
        self.probability = probability
        self.pixels = torch.from_numpy(null_image(image_px)[None])
        self.features = features

    def __call__(self, network: CaptionNetwork, features: Tensor) -> Tensor:
        """Features (b, N, C) of images; some rows are the null picture's now."""
        if not self.probability:
            return features
        device = features.device
        null = network.features(self.pixels.to(device)) if self.features is None else self.features
        chosen = torch.rand(len(features), 1, 1, device=device) < self.probability
        return torch.where(chosen, null.to(device, features.dtype), features)


def batch_features(network: CaptionNetwork, pixels: Tensor | None, features: Tensor | None) -> Tensor:
    """Features of a batch: given ones, or the trunk's of its pixels; (b, N, C).

    Raises:
        DataError: neither is there.
    """
    if features is not None:
        return features
    if pixels is None:
        raise DataError("a batch needs pixels or features: build one of the two caches")
    return network.features(pixels)
