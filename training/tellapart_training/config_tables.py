"""The tables of a run's TOML: data, optimizer, augmentation, loop, and the parts of a reward run.

The stages that hold them are in `config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tellapart.errors import ConfigError

PARTS = ("trunk", "decoder", "text", "heads")
BANDS = ("hard", "medium", "easy")


def need(condition: bool, name: str, value: object, expected: str) -> None:
    """Refuse a value with a message that names the key and what it may be.

    Raises:
        ConfigError: `condition` does not hold.
    """
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
    """Images of `train_splits` held back to select on; 0 selects the last epoch."""
    min_words: int = 2
    """Captions with fewer words after normalisation are dropped and counted."""
    bad_lines: str = "error"
    """`error` stops at the first bad line, `skip` counts and reports them."""
    cache: str = "runs/cache"
    """Folder of decoded pixels and features; safe to delete."""
    seed: int = 0
    """Picks the images held back and the cached views; apart from the run's `seed`, so that repeats of a run
    with other seeds share their data."""
    limit_images: int = 0
    """Use only the first N training images (0: all); for trying things."""

    def __post_init__(self) -> None:
        need(self.tuning_images >= 0, "data.tuning_images", self.tuning_images, "at least 0")
        need(self.min_words >= 1, "data.min_words", self.min_words, "at least 1")
        need(self.limit_images >= 0, "data.limit_images", self.limit_images, "at least 0")
        need(self.bad_lines in ("error", "skip"), "data.bad_lines", self.bad_lines, "'error' or 'skip'")


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
            need(value >= 0, f"optimizer.lr_multipliers.{part}", value, "at least 0")


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
    """Where the cosine ends, as a share of `lr`; 1 keeps the rate constant after the warm-up."""
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
        need(self.lr > 0, "optimizer.lr", self.lr, "above 0")
        need(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        need(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "optimizer.betas", self.betas, "two numbers in [0, 1)",
        )  # fmt: skip
        for name in ("warmup_share", "label_smoothing", "ema_decay"):
            need(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "in [0, 1)")
        share = self.final_lr_share
        need(0 <= share <= 1, "optimizer.final_lr_share", share, "in [0, 1]; 1 keeps the rate constant")
        for name in ("batch_size", "accumulate", "epochs"):
            need(getattr(self, name) >= 1, f"optimizer.{name}", getattr(self, name), "at least 1")
        need(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "at least 0")
        need(
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
        need(0 <= self.flip <= 1, "augment.flip", self.flip, "in [0, 1]")
        need(0.3 <= self.min_scale <= 1, "augment.min_scale", self.min_scale, "in [0.3, 1]")
        need(1 <= self.max_aspect <= 2, "augment.max_aspect", self.max_aspect, "in [1, 2]")
        for name in ("brightness", "contrast", "colour"):
            need(0 <= getattr(self, name) < 1, f"augment.{name}", getattr(self, name), "in [0, 1)")


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
            need(getattr(self, name) >= 1, f"loop.{name}", getattr(self, name), "at least 1")
        for name in ("caption_images", "sample_images"):
            need(getattr(self, name) >= 0, f"loop.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What a drawn caption earns: a weighted sum of terms, each higher for better; 0 leaves a term out."""

    self_retrieval: float = 0.0
    """Log-probability of the caption's own image among the others, in nats, at most 0 (method 4.1)."""
    cider_d: float = 1.0
    """CIDEr-D against the human captions of its image, 0 to 10, document frequencies of the training set."""
    grammar: float = 0.0
    """Probability that the text is sound, 0 to 1, by `grammar_checkpoint` (method 9.3)."""
    faithfulness: float = 0.0
    """Minus the share of content words that no human caption of the image supports, -1 to 0."""
    fluency: float = 0.0
    """Mean log-probability per piece in nats, at most 0, under `language_model`."""
    scorer: str = ""
    """Retriever checkpoint that judges `self_retrieval`; frozen, never the network in training."""
    scale: float = 0.0
    """Inverse temperature of the softmax over images; 0 takes the scorer's own, the paper has 100."""
    denominator: str = "batch"
    """`batch`: every image of the batch over all processes is a candidate; `bag`: only the own bag's."""
    grammar_checkpoint: str = ""
    """Folder that `tellapart train grammar` wrote."""
    language_model: str = ""
    """Checkpoint of `tellapart train warmup` whose likelihood is `fluency`; frozen."""

    def __post_init__(self) -> None:
        names = ("self_retrieval", "cider_d", "grammar", "faithfulness", "fluency")
        for name in names:
            need(getattr(self, name) >= 0, f"reward.{name}", getattr(self, name), "at least 0")
        need(any(getattr(self, name) for name in names), "reward", names, "at least one weight above 0")
        need(self.scale >= 0, "reward.scale", self.scale, "at least 0")
        need(self.denominator in ("batch", "bag"), "reward.denominator", self.denominator, "'batch' or 'bag'")
        needed = {"self_retrieval": "scorer", "grammar": "grammar_checkpoint", "fluency": "language_model"}
        for name, path in needed.items():
            if getattr(self, name):
                need(getattr(self, path) != "", f"reward.{path}", getattr(self, path), "a checkpoint folder")


@dataclass(frozen=True, kw_only=True)
class CurriculumRow:
    """Some epochs on bags of one size and difficulty."""

    epochs: int = 1
    size: int = 2
    band: str = "hard"
    """`hard`, `medium` or `easy`, as `mine-bags` names them."""

    def __post_init__(self) -> None:
        need(self.epochs >= 1, "curriculum epochs", self.epochs, "at least 1")
        need(self.size >= 2, "curriculum size", self.size, "at least 2")
        need(self.band in BANDS, "curriculum band", self.band, f"one of {', '.join(BANDS)}")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank changes of attention weights (and of the trunk) instead of the weights (Hu et al. 2022)."""

    rank: int = 0
    """0 trains the weights themselves."""
    alpha: int = 16
    """Changes are scaled by alpha / rank."""
    init: str = "kaiming"
    """Start of the first factor: `kaiming`, or `normal` with deviation 1 as the paper's code has it."""
    trunk: bool = False
    """Also on the trunk's pointwise convolutions; needs optimizer.lr_multipliers.trunk above 0."""

    def __post_init__(self) -> None:
        need(self.rank >= 0, "lora.rank", self.rank, "at least 0")
        need(self.alpha > 0, "lora.alpha", self.alpha, "above 0")
        need(self.init in ("kaiming", "normal"), "lora.init", self.init, "'kaiming' or 'normal'")
