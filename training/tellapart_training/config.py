"""What a training run is told: dataclasses read from TOML, checked on the way in, written back resolved.

A stage (`warmup`, `mle`, `retriever`) is one frozen dataclass; the parts they share are nested dataclasses
and TOML tables of the same names, see `config_file`. Paths are taken relative to the current directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tellapart.errors import ConfigError

PARTS = ("trunk", "decoder", "text", "heads")


def _need(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(
            f"{name} must be {expected}, got {value!r}: change it in the config or with --set {name}=..."
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images and captions come from, and what is held out."""

    captions: str = ""
    """Captions file: our JSON lines, COCO or Karpathy JSON, or a Flickr8k token file."""
    images: str = ""
    """Folder of images, or an uncompressed .tar read in place."""
    text: tuple[str, ...] = ()
    """Further caption files used as text only (`warmup`)."""
    train_splits: tuple[str, ...] = ("train",)
    """Splits to train on. The reported split must not be here."""
    tuning_images: int = 300
    """Images of `train_splits` held back by `seed` to select on; 0 selects the last epoch."""
    min_words: int = 2
    """Captions with fewer words after normalisation are dropped and counted."""
    bad_lines: str = "error"
    """`error` stops at the first bad line, `skip` counts and reports them."""
    cache: str = "runs/cache"
    """Folder of decoded pixels and features; safe to delete."""
    limit_images: int = 0
    """Use only the first N training images (0: all); for trying things."""

    def __post_init__(self) -> None:
        _need(self.tuning_images >= 0, "data.tuning_images", self.tuning_images, "at least 0")
        _need(self.min_words >= 1, "data.min_words", self.min_words, "at least 1")
        _need(self.limit_images >= 0, "data.limit_images", self.limit_images, "at least 0")
        _need(self.bad_lines in ("error", "skip"), "data.bad_lines", self.bad_lines, "'error' or 'skip'")


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """A factor on the learning rate of each part; 0 freezes the part."""

    trunk: float = 0.0
    decoder: float = 1.0
    text: float = 1.0
    heads: float = 1.0

    def __post_init__(self) -> None:
        for part in PARTS:
            value = getattr(self, part)
            _need(value >= 0, f"optimizer.lr_multipliers.{part}", value, "at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, linear warm-up, cosine decay, and an average of the weights."""

    lr: float = 5e-4
    lr_multipliers: PartsConfig = field(default_factory=PartsConfig)
    weight_decay: float = 0.05
    """On matrices only; biases, norms and scalars are left alone."""
    betas: tuple[float, ...] = (0.9, 0.98)
    warmup_share: float = 0.05
    """Share of all steps spent rising to `lr`."""
    final_lr_share: float = 0.01
    """Where the cosine ends, as a share of `lr`."""
    batch_size: int = 64
    """Images (or texts, in `warmup`) per optimizer step, over all processes and accumulated parts."""
    accumulate: int = 1
    """Parts a batch is cut into to save memory; negatives of the contrastive loss are then a part's own."""
    epochs: int = 10
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    label_smoothing: float = 0.1
    ema_decay: float = 0.999
    """Decay of the averaged weights that are evaluated and kept; 0 keeps the raw weights."""

    def __post_init__(self) -> None:
        _need(self.lr > 0, "optimizer.lr", self.lr, "above 0")
        _need(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        _need(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "optimizer.betas", self.betas, "two numbers in [0, 1)",
        )  # fmt: skip
        for name in ("warmup_share", "final_lr_share", "label_smoothing", "ema_decay"):
            _need(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "in [0, 1)")
        for name in ("batch_size", "accumulate", "epochs"):
            _need(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), "at least 1")
        _need(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "at least 0")
        _need(
            self.batch_size % self.accumulate == 0,
            "optimizer.accumulate", self.accumulate, f"a divisor of batch_size {self.batch_size}",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Changes of an image that leave its captions true."""

    enabled: bool = True
    flip: float = 0.5
    """Chance of a mirror image; never where a caption says left or right."""
    min_scale: float = 0.7
    """Smallest area of a crop as a share of the image; 1 switches cropping off."""
    max_aspect: float = 1.15
    """Most a crop is stretched one way."""
    brightness: float = 0.2
    """Largest relative change."""
    contrast: float = 0.2
    """Largest relative change."""
    colour: float = 0.1
    """Largest relative change of saturation and of each channel; never where a caption names a colour."""

    def __post_init__(self) -> None:
        _need(0 <= self.flip <= 1, "augment.flip", self.flip, "in [0, 1]")
        _need(0.3 <= self.min_scale <= 1, "augment.min_scale", self.min_scale, "in [0.3, 1]")
        _need(1 <= self.max_aspect <= 2, "augment.max_aspect", self.max_aspect, "in [1, 2]")
        for name in ("brightness", "contrast", "colour"):
            _need(0 <= getattr(self, name) < 1, f"augment.{name}", getattr(self, name), "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What is written while training, and how often. Nothing here changes the weights."""

    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    save_every: int = 200
    """Steps between two saved states; the end of an epoch always saves."""
    keep_states: int = 2
    evaluate_every: int = 1
    """Epochs between two evaluations on the tuning images; the last epoch always evaluates."""
    caption_images: int = 150
    """Tuning images captioned greedily at each evaluation for CIDEr-D."""
    sample_images: int = 8
    """Tuning images whose captions go to samples.jsonl."""

    def __post_init__(self) -> None:
        for name in ("log_every", "save_every", "keep_states", "evaluate_every"):
            _need(getattr(self, name) >= 1, f"loop.{name}", getattr(self, name), "at least 1")
        for name in ("caption_images", "sample_images"):
            _need(getattr(self, name) >= 0, f"loop.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every stage shares."""

    run: str = ""
    """Folder of this run: resolved config, metrics, samples, states, checkpoints."""
    init: str = ""
    """Checkpoint folder to start from."""
    seed: int = 0
    precision: str = "fp32"
    """`fp32`, or `bf16` for autocast (worth it on CPUs with AMX and on GPUs)."""
    device: str = "auto"
    """`auto` takes what Accelerate finds, `cpu` never looks for an accelerator."""
    threads: int = 0
    """Threads of torch on the CPU; 0 leaves torch's choice. Another count may round sums otherwise."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _need(self.run != "", "run", self.run, "the folder of the run")
        _need(self.init != "", "init", self.init, "a checkpoint folder to start from")
        _need(self.precision in ("fp32", "bf16"), "precision", self.precision, "'fp32' or 'bf16'")
        _need(self.device in ("auto", "cpu"), "device", self.device, "'auto' or 'cpu'")
        _need(self.threads >= 0, "threads", self.threads, "at least 0")


@dataclass(frozen=True, kw_only=True)
class WarmupConfig(TrainConfig):
    """Text-only language modelling of the decoder, before it sees an image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _need(
            bool(self.data.captions or self.data.text),
            "data.text",
            self.data.text,
            "at least one caption file",
        )


@dataclass(frozen=True, kw_only=True)
class ImageStageConfig(TrainConfig):
    """What the two stages that look at images share."""

    trunk: str = "tuned"
    """`tuned`: the trunk runs in every step and learns if its multiplier is above 0; `frozen`: its features
    are computed once for a few augmented views of each image and read back from disk."""
    trunk_first_block: int = 0
    """With `trunk = "tuned"`: the stem and the blocks before this one do not learn; 0 lets all learn."""
    trunk_depthwise: bool = True
    """With `trunk = "tuned"`: whether depthwise filters learn; their gradients are most of a CPU step."""
    features_from: str = ""
    """With `trunk = "frozen"`: a device bundle (or an .onnx file) whose trunk stands for ours, so that
    heads are trained against the trunk that will ship. Empty: the checkpoint's own trunk."""
    views: int = 4
    """Cached views of each training image; the first is the image as it is."""
    captions_per_image: int = 5
    """Captions of every image of a batch used in a step; the image is encoded once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _need(self.trunk in ("tuned", "frozen"), "trunk", self.trunk, "'tuned' or 'frozen'")
        _need(self.trunk_first_block >= 0, "trunk_first_block", self.trunk_first_block, "at least 0")
        _need(self.views >= 1, "views", self.views, "at least 1")
        _need(1 <= self.captions_per_image <= 5, "captions_per_image", self.captions_per_image, "1 to 5")
        _need(
            not self.features_from or self.trunk == "frozen",
            "features_from", self.features_from, "empty unless trunk = 'frozen'",
        )  # fmt: skip
        _need(
            self.trunk == "tuned" or self.optimizer.lr_multipliers.trunk == 0,
            "optimizer.lr_multipliers.trunk", self.optimizer.lr_multipliers.trunk, "0 when trunk = 'frozen'",
        )  # fmt: skip
        _need(self.data.captions != "", "data.captions", self.data.captions, "a captions file")
        _need(self.data.images != "", "data.images", self.data.images, "a folder or .tar of images")


@dataclass(frozen=True, kw_only=True)
class MleConfig(ImageStageConfig):
    """The captioner: cross-entropy on human captions."""

    contrastive_weight: float = 0.0
    """Weight of the retriever's loss added to cross-entropy, so that one trunk serves both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _need(self.contrastive_weight >= 0, "contrastive_weight", self.contrastive_weight, "at least 0")


@dataclass(frozen=True, kw_only=True)
class RetrieverConfig(ImageStageConfig):
    """The two towers: images and captions of unit length, pulled together."""


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(ImageStageConfig):
    """The captioner, rewarded for CIDEr-D of captions it draws itself."""

    samples_per_image: int = 5
    """Captions drawn of each image; the mean reward of the others is the baseline of each."""
    mle_weight: float = 0.1
    """Weight of cross-entropy on human captions beside the reward, which keeps the language sound."""
    max_new_tokens: int = 22
    """Longest drawn caption, end piece included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _need(self.samples_per_image >= 2, "samples_per_image", self.samples_per_image, "at least 2")
        _need(self.mle_weight >= 0, "mle_weight", self.mle_weight, "at least 0")
        _need(self.max_new_tokens >= 2, "max_new_tokens", self.max_new_tokens, "at least 2")


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """The checkpoint that training starts from."""

    run: str = ""
    """Checkpoint folder to write."""
    model: str = ""
    """Architecture as JSON; its vocabulary_size is replaced by the size of the learnt vocabulary."""
    min_count: int = 3
    """Word pieces seen less often in the texts are spelt with smaller ones."""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        _need(self.run != "", "run", self.run, "the checkpoint folder to write")
        _need(self.model != "", "model", self.model, "an architecture file")
        _need(self.min_count >= 1, "min_count", self.min_count, "at least 1")
        _need(
            bool(self.data.captions or self.data.text), "data.captions", self.data.captions, "a captions file"
        )


STAGES: dict[str, type[TrainConfig] | type[InitConfig]] = {
    "init": InitConfig, "warmup": WarmupConfig, "mle": MleConfig, "retriever": RetrieverConfig,
    "reinforce": ReinforceConfig,
}  # fmt: skip
