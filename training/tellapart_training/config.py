"""What a training run is told: dataclasses read from TOML, checked on the way in, written back resolved.

A stage (`warmup`, `mle`, `retriever`, ...) is one frozen dataclass; the parts they share are nested
dataclasses and TOML tables of the same names, see `config_tables` and `config_file`. Paths are taken relative
to the current directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tellapart_training.config_tables import (
    PARTS,
    AugmentConfig,
    CurriculumRow,
    DataConfig,
    LoopConfig,
    LoraConfig,
    OptimizerConfig,
    PartsConfig,
    RewardConfig,
    need,
)

__all__ = [
    "PARTS", "STAGES", "AugmentConfig", "CurriculumRow", "DataConfig", "GrammarConfig", "ImageStageConfig",
    "InitConfig", "LoopConfig", "LoraConfig", "MleConfig", "OptimizerConfig", "PartsConfig",
    "ReinforceConfig", "RetrieverConfig", "RewardConfig", "TrainConfig", "WarmupConfig",
]  # fmt: skip

PRECISIONS = ("fp32", "bf16", "auto")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every stage shares."""

    run: str = ""
    """Folder of this run: resolved config, metrics, samples, states, checkpoints."""
    init: str = ""
    """Checkpoint folder to start from."""
    seed: int = 0
    precision: str = "fp32"
    """`fp32`, `bf16` for autocast, or `auto`: `bf16` where the device computes in it (GPUs, processors with
    AMX or AVX-512 BF16), else `fp32`. An emulated `bf16` step takes more than ten times as long."""
    device: str = "auto"
    """`auto` takes what Accelerate finds, `cpu` never looks for an accelerator."""
    threads: int = 0
    """Threads of torch on the CPU; 0 leaves torch's choice. Another count may round sums otherwise."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        need(self.run != "", "run", self.run, "the folder of the run")
        need(self.init != "", "init", self.init, "a checkpoint folder to start from")
        need(self.precision in PRECISIONS, "precision", self.precision, "'fp32', 'bf16' or 'auto'")
        need(self.device in ("auto", "cpu"), "device", self.device, "'auto' or 'cpu'")
        need(self.threads >= 0, "threads", self.threads, "at least 0")


@dataclass(frozen=True, kw_only=True)
class WarmupConfig(TrainConfig):
    """Text-only language modelling of the decoder, before it sees an image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need(
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
    null_probability: float = 0.0
    """Chance that cross-entropy shows the decoder a flat grey picture instead of an image: what `guidance` on
    the device leads away from (method 9.4). The retriever's loss and drawn captions see the image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.trunk in ("tuned", "frozen"), "trunk", self.trunk, "'tuned' or 'frozen'")
        need(self.trunk_first_block >= 0, "trunk_first_block", self.trunk_first_block, "at least 0")
        need(self.views >= 1, "views", self.views, "at least 1")
        need(1 <= self.captions_per_image <= 5, "captions_per_image", self.captions_per_image, "1 to 5")
        need(0 <= self.null_probability < 1, "null_probability", self.null_probability, "in [0, 1)")
        need(
            not self.features_from or self.trunk == "frozen",
            "features_from", self.features_from, "empty unless trunk = 'frozen'",
        )  # fmt: skip
        need(
            self.trunk == "tuned" or self.optimizer.lr_multipliers.trunk == 0,
            "optimizer.lr_multipliers.trunk", self.optimizer.lr_multipliers.trunk, "0 when trunk = 'frozen'",
        )  # fmt: skip
        captions = self.data.captions
        need(captions != "" or not self.needs_captions, "data.captions", captions, "a captions file")
        need(self.data.images != "", "data.images", self.data.images, "a folder or .tar of images")

    @property
    def needs_captions(self) -> bool:
        """Whether the stage cannot do without human captions."""
        return True


@dataclass(frozen=True, kw_only=True)
class MleConfig(ImageStageConfig):
    """The captioner: cross-entropy on human captions."""

    contrastive_weight: float = 0.0
    """Weight of the retriever's loss added to cross-entropy, so that one trunk serves both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.contrastive_weight >= 0, "contrastive_weight", self.contrastive_weight, "at least 0")


@dataclass(frozen=True, kw_only=True)
class RetrieverConfig(ImageStageConfig):
    """The two towers: images and captions of unit length, pulled together."""


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(ImageStageConfig):
    """The captioner, rewarded for captions that it draws itself."""

    preset: str = ""
    """Values below those of the file, see `presets`: `paper`, `sr-dessi`, `cider`, `cider-sr`, `default`."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    samples_per_image: int = 5
    """Captions drawn of each image."""
    decode: str = "sample"
    """`sample` draws captions; `greedy` takes the likeliest token each time (Dessi et al. 2023)."""
    temperature: float = 1.0
    """Divides the logits, both where captions are drawn and where their log-probability is taken."""
    max_new_tokens: int = 22
    """Longest drawn caption, end piece included."""
    baseline: str = "leave_one_out"
    """What a reward is compared with: `leave_one_out` the mean of the other samples of its image, `greedy`
    the reward of the greedy caption, `running_mean` the mean of all batch means so far, or `none`."""
    baseline_reset: bool = False
    """Whether `running_mean` starts anew at every row of the curriculum."""
    normalise: str = "tokens"
    """How log-probabilities are averaged: `tokens` over all tokens of the batch, `length` over each caption
    and then over captions (the paper), `captions` summed over each caption, then the mean over captions."""
    kl_weight: float = 0.0
    """Weight of the divergence from the network that the run started from; 0 leaves it out."""
    mle_weight: float = 0.1
    """Weight of cross-entropy on human captions beside the reward, which keeps the language sound."""
    curriculum: tuple[CurriculumRow, ...] = ()
    """Bag size and difficulty of the epochs; empty draws batches of single images at random."""
    bags: str = ""
    """File of `tellapart mine-bags` that the curriculum's bags come from."""
    max_steps_per_epoch: int = 0
    """Ends an epoch early; 0 takes every whole batch."""
    selection: str = "cider_d"
    """Figure on the tuning images that picks the best epoch: `cider_d`, or `self_retrieval_r1` by the
    reward's scorer."""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (
            ("decode", ("sample", "greedy")), ("selection", ("cider_d", "self_retrieval_r1")),
            ("baseline", ("leave_one_out", "greedy", "running_mean", "none")),
            ("normalise", ("tokens", "length", "captions")),
        ):  # fmt: skip
            need(getattr(self, name) in choices, name, getattr(self, name), "one of " + ", ".join(choices))
        fewest = 2 if self.baseline == "leave_one_out" else 1
        samples = self.samples_per_image
        need(samples >= fewest, "samples_per_image", samples, f"at least {fewest} with this baseline")
        if self.decode == "greedy":
            need(samples == 1, "samples_per_image", samples, "1 with decode = 'greedy'")
            fits = self.baseline in ("running_mean", "none")
            need(fits, "baseline", self.baseline, "'running_mean' or 'none' with decode = 'greedy'")
        need(self.temperature > 0, "temperature", self.temperature, "above 0")
        need(self.kl_weight >= 0, "kl_weight", self.kl_weight, "at least 0")
        need(self.mle_weight >= 0, "mle_weight", self.mle_weight, "at least 0")
        need(self.max_new_tokens >= 2, "max_new_tokens", self.max_new_tokens, "at least 2")
        need(self.max_steps_per_epoch >= 0, "max_steps_per_epoch", self.max_steps_per_epoch, "at least 0")
        self._check_bags()
        scored = self.selection != "self_retrieval_r1" or self.reward.scorer
        need(bool(scored), "reward.scorer", self.reward.scorer, "given, as `selection` needs it")
        judged = self.data.captions or self.selection != "cider_d" or not self.data.tuning_images
        need(bool(judged), "selection", self.selection, "'self_retrieval_r1' where data.captions is empty")
        learns = self.trunk == "tuned" and self.optimizer.lr_multipliers.trunk > 0
        need(learns or not self.lora.trunk, "lora.trunk", self.lora.trunk, "false where the trunk is frozen")

    def _check_bags(self) -> None:
        covered, epochs = sum(row.epochs for row in self.curriculum), self.optimizer.epochs
        if self.curriculum:
            need(self.bags != "", "bags", self.bags, "a file of `tellapart mine-bags`, for the curriculum")
            need(epochs <= covered, "optimizer.epochs", epochs, f"at most the curriculum's {covered}")
        else:
            bagged = self.reward.denominator == "bag"
            need(not bagged, "reward.denominator", "bag", "'batch' without a curriculum")

    @property
    def needs_captions(self) -> bool:
        """Whether a term of the reward, or the cross-entropy, reads human captions."""
        return bool(self.reward.cider_d or self.reward.faithfulness or self.mle_weight)


@dataclass(frozen=True, kw_only=True)
class GrammarConfig(TrainConfig):
    """The judge of sound text: the scorer's text tower with a head that tells captions from broken ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need(bool(self.data.captions or self.data.text), "data.text", self.data.text, "a caption file")


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
        need(self.run != "", "run", self.run, "the checkpoint folder to write")
        need(self.model != "", "model", self.model, "an architecture file")
        need(self.min_count >= 1, "min_count", self.min_count, "at least 1")
        need(
            bool(self.data.captions or self.data.text), "data.captions", self.data.captions, "a captions file"
        )


STAGES: dict[str, type[TrainConfig] | type[InitConfig]] = {
    "init": InitConfig, "warmup": WarmupConfig, "mle": MleConfig, "retriever": RetrieverConfig,
    "reinforce": ReinforceConfig, "grammar": GrammarConfig,
}  # fmt: skip
