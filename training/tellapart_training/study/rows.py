"""What the study compares, as data: rows of settings over one configuration, and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tellapart.errors import UsageError
from tellapart_training.config_file import toml_value
from tellapart_training.steps import Step

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "study"
SEEDS = (0, 1, 2)
BAG_SIZES = (2, 3, 5, 7, 10, 15, 20)
STEPS_PER_EPOCH = 14
STAGES = ("mle", "reinforce")


@dataclass(frozen=True)
class Row:
    """One line of the study's tables.

    Attributes:
        name: of its runs' folders.
        title: in tables.
        settings: over reinforce.toml; empty for the rows that are trained on captions alone.
        unlabelled: train on the images without captions (cross-domain).
        start: row of the same seed that a reward row starts from.
        blended: a row on captions alone reads the blended ones.
    """

    name: str
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    unlabelled: bool = False
    start: str = "mle"
    blended: bool = False


_SR = {"reward.self_retrieval": 1.0}
_CIDER = {"reward.cider_d": 1.0}
# Both spread about equally over the samples of an image: CIDEr-D by about 0.35, log p by about 1 nat.
_BOTH = {"reward.cider_d": 1.0, "reward.self_retrieval": 0.3}
_HARD = {"curriculum": [{"epochs": 7, "size": 5, "band": "hard"}]}
# Method 5.2 with one epoch a size: its 20 epochs would not fit, the order and the sizes are kept.
_BAGCURRI = {"curriculum": [{"epochs": 1, "size": size, "band": "hard"} for size in BAG_SIZES]}

ROWS = (
    Row("mle", "MLE"),
    Row("sr", "SR, random batches", _SR),
    Row("sr-hard", "SR, fixed hard bags of 5", {**_SR, **_HARD}),
    Row("sr-bagcurri", "SR + BagCurri", {**_SR, **_BAGCURRI}),
    Row("cider", "CIDEr", _CIDER),
    Row("cider-sr", "CIDEr + SR", _BOTH),
    Row("cider-sr-bagcurri", "CIDEr + SR + BagCurri", {**_BOTH, **_BAGCURRI}),
    Row("sr-coco", "SR on unlabelled COCO", {**_SR, "data.tuning_images": 0}, unlabelled=True),
    Row("mle-blended", "MLE on blended captions", blended=True),
    Row("sr-blended", "SR from MLE on blended", _SR, start="mle-blended"),
    Row("cider-sr-blended", "CIDEr + SR from MLE on blended", _BOTH, start="mle-blended"),
)


@dataclass(frozen=True)
class Places:
    """Where the study finds and keeps things.

    Attributes:
        data: folder with `flickr8k`, `coco_text`, `coco_unlabelled` and `coco_val100`.
        run: folder of the study's runs.
        embedded: folder of the embedded recipe: its trunk, joint checkpoint and scorer are the study's.
        rows: that are trained.
        changes: `STAGE.KEY=VALUE` over the settings of every row of a stage, `mle` or `reinforce`.
    """

    data: Path
    run: Path
    embedded: Path
    rows: Sequence[Row] = ROWS
    changes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for change in self.changes:
            if change.split(".")[0] not in STAGES or "=" not in change:
                raise UsageError(f"--set {change}: must be STAGE.KEY=VALUE, STAGE one of {', '.join(STAGES)}")

    def changes_of(self, stage: str) -> list[str]:
        """Overrides of the stage's configuration, as its command takes them."""
        prefix = f"{stage}."
        return [
            f"--set={change.removeprefix(prefix)}" for change in self.changes if change.startswith(prefix)
        ]

    @property
    def bags(self) -> Path:
        """Training bags, mined by the reward's scorer."""
        return self.run / "bags.json"

    @property
    def blended(self) -> Path:
        """Blended captions of the training photos, up to five a photo, each grown from another human one."""
        return self.run / "blended.jsonl"

    @property
    def scorer(self) -> Path:
        """The scorer of the reward: the retriever that ships, frozen; its trunk is the captioner's."""
        return self.embedded / "heads/last"

    @property
    def captioned(self) -> dict[str, Any]:
        """Settings that name the captioned photos."""
        folder = self.data / "flickr8k"
        return {"data.captions": folder / "captions.jsonl", "data.images": folder / "images.tar"}


def bag_steps(places: Places) -> list[Step]:
    """Hard bags of training photos that look alike, in every size of the curriculum, if a row needs any."""
    if not any("curriculum" in row.settings for row in places.rows):
        return []
    folder = places.data / "flickr8k"
    argv = [
        "mine-bags", "--images", str(folder / "images.tar"), "--captions", str(folder / "captions.jsonl"),
        "--split", "train", "extra", "--tuning-images", "300", "--scorer", str(places.scorer),
        "--sizes", *map(str, BAG_SIZES), "--bands", "hard", "--out", str(places.bags),
        "--cache", str(places.embedded / "cache"),
    ]  # fmt: skip
    return [Step("bags", places.bags, argv)]


def blend_steps(places: Places) -> list[Step]:
    """Blended captions, if a row reads any; as many a photo as people wrote, so that steps read alike."""
    if not any(row.blended for row in places.rows):
        return []
    captions = str(places.data / "flickr8k/captions.jsonl")
    argv = [
        "boost", "--captions", captions, "--split", "train", "extra", "--per-image", "5",
        "--out", str(places.blended),
    ]  # fmt: skip
    return [Step("blended", places.blended, argv)]


def judge_steps(places: Places) -> list[Step]:
    """The judge and the language model, neither ever used in training; in order."""
    text = [str(places.data / "coco_text" / "captions.jsonl")]
    captions = {"data.captions": places.captioned["data.captions"], "data.text": text}
    steps = []
    for name, stage in (("judge", "retriever"), ("language", "warmup")):
        start = places.run / f"{name}_init"
        steps.append(_train("init", f"{name}_init", {**captions, "run": start}, makes=start))
        settings = {"run": places.run / name, "init": start, "data.cache": places.run / "cache"}
        settings.update(captions if stage == "warmup" else places.captioned)
        steps.append(_train(stage, name, settings, makes=places.run / name))
    return steps


def mle_steps(places: Places) -> list[Step]:
    """The start of each seed; none needs another."""
    steps = []
    for row in places.rows:
        for seed in SEEDS if not row.settings else ():
            target = places.run / f"{row.name}-{seed}"
            settings: dict[str, Any] = {
                "run": target, "init": places.embedded / "joint/last", "seed": seed,
                "features_from": places.embedded / "trunk-int8", "data.cache": places.embedded / "cache",
                **places.captioned,
            }  # fmt: skip
            if row.blended:
                settings["data.captions"] = places.blended
            steps.append(_train("mle", "mle", settings, makes=target, changes=places.changes_of("mle")))
    return steps


def reward_steps(places: Places) -> list[Step]:
    """Every reward row of every seed, one seed after the other; none needs another."""
    steps = []
    changes = places.changes_of("reinforce")
    for seed in SEEDS:
        for row in places.rows:
            if not row.settings:
                continue
            target = places.run / f"{row.name}-{seed}"
            settings: dict[str, Any] = {
                "run": target, "init": places.run / f"{row.start}-{seed}/last", "seed": seed,
                "features_from": places.embedded / "trunk-int8", "data.cache": places.embedded / "cache",
                "reward.scorer": places.scorer, "max_steps_per_epoch": STEPS_PER_EPOCH,
                **places.captioned, **row.settings,
            }  # fmt: skip
            if "curriculum" in row.settings:
                settings["bags"] = places.bags
            if row.unlabelled:
                settings["data.captions"] = ""
                settings["data.images"] = places.data / "coco_unlabelled/images.tar"
                settings["selection"] = "self_retrieval_r1"
            steps.append(_train("reinforce", "reinforce", settings, makes=target, changes=changes))
    return steps


def _train(
    stage: str, config: str, settings: Mapping[str, Any], *, makes: Path, changes: Sequence[str] = ()
) -> Step:
    overrides = [
        f"--set={key}={toml_value(str(value) if isinstance(value, Path) else value)}"
        for key, value in settings.items()
    ]
    argv = ["train", stage, "--config", str(CONFIGS / f"{config}.toml"), *overrides, *changes]
    return Step(makes.name, makes, argv, trains=stage != "init")
