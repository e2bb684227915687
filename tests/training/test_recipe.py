"""The recipe: what is done is skipped, what was stopped is resumed, what failed publishes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from tellapart.bundle import open_bundle
from tellapart.errors import BundleError, DataError
from tellapart.truematch import read_benchmark
from tellapart_training import steps
from tellapart_training.config_file import load_config
from tellapart_training.publish import CARD, LICENCE, publish_embedded
from tellapart_training.recipe import recipe_steps, run_recipe

pytestmark = pytest.mark.train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name in ("flickr8k", "coco_text", "coco_val100"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture
def finished_run(tmp_path: Path, tiny_bundle: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(tiny_bundle, run / "int8")
    for number, name in enumerate(("fp32-val", "fp32-coco_val100", "int8-val", "int8-coco_val100")):
        report = {"cider_d": 0.5 + number / 8, "text_to_image_r10": 0.75, "unknown": 1}
        (run / f"{name}.json").write_text(json.dumps(report))
    return run


def test_published_bundle_opens_with_card_and_figures(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    (finished_run / "NOTES.md").write_text("The second step was run twice.")
    (finished_run / "EXAMPLES.md").write_text("## Bags")
    publish_embedded(finished_run, out, seconds={"joint": 120.0, "heads": 60.0}, processors=2)
    with open_bundle(out) as bundle:
        manifest = bundle.manifest
        card = bundle.read_bytes(CARD).decode()
    assert manifest.metrics["evaluate"]["int8 val"] == {"cider_d": 0.75, "text_to_image_r10": 0.75}
    assert manifest.licence == LICENCE
    assert "| CIDEr-D (0 to 10) | 0.5 | 0.625 | 0.75 | 0.875 |" in card
    assert "| joint | 2.0 |" in card
    assert ": 3 minutes in all" in card
    assert "The second step was run twice." in card
    assert card.index("| CIDEr-D") < card.index("## Bags") < card.index("## Sizes")
    assert "$" not in card


def test_missing_report_publishes_nothing(finished_run: Path, tmp_path: Path) -> None:
    (finished_run / "int8-val.json").unlink()
    with pytest.raises(DataError, match=r"int8-val\.json"):
        publish_embedded(finished_run, tmp_path / "model", seconds={}, processors=2)
    assert not (tmp_path / "model").exists()


def test_something_that_is_no_bundle_is_not_replaced(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError):
        publish_embedded(finished_run, tmp_path / "model", seconds={}, processors=2)
    assert (tmp_path / "model" / "thesis.txt").read_text() == "years of work"


def test_every_training_step_has_a_config_that_parses(data: Path, tmp_path: Path) -> None:
    steps = [step for step in recipe_steps(data, tmp_path / "run", cache=tmp_path) if step.argv[0] == "train"]
    assert [step.argv[1] for step in steps] == ["init", "warmup", "mle", "mle", *["reinforce"] * 5]
    for step in steps:
        overrides = [flag.removeprefix("--set=") for flag in step.argv if flag.startswith("--set=")]
        config = load_config(Path(step.argv[3]), stage=step.argv[1], overrides=overrides)
        assert Path(config.run) == step.makes
    polished = [step for step in steps if step.name.startswith("polish")]
    assert len({json.dumps(step.argv) for step in polished}) == 3
    [average] = [
        step for step in recipe_steps(data, tmp_path / "run", cache=tmp_path) if step.name == "average"
    ]
    assert average.argv[1:4] == [str(step.makes / "last") for step in polished]


def test_the_bundle_that_ships_is_gated_on_bags(data: Path, tmp_path: Path) -> None:
    steps = {step.name: step for step in recipe_steps(data, tmp_path / "run", cache=tmp_path)}
    argv = steps["quantize int8"].argv
    assert read_benchmark(Path(argv[argv.index("--benchmark") + 1])).bags.keys() == {3, 5, 7}
    assert "--max-recall-drop" not in argv  # the strict default holds
    # Captions that a retriever helped to choose please it more than others: neither side's own may judge.
    assert argv[argv.index("--scorer") + 1] not in (argv[1], argv[argv.index("--out") + 1])
    assert steps["export joint-fp32"].makes == Path(argv[argv.index("--scorer") + 1])
    assert "--benchmark" not in steps["quantize trunk-int8"].argv


def test_stops_at_a_failed_step_and_goes_on_from_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, commands = tmp_path / "run", []
    broken = {"warmup"}

    def fake(argv: list[str], *, check: bool, env: dict[str, str]) -> SimpleNamespace:
        assert not check
        assert env["PATH"]
        verb = argv[3:]
        commands.append(" ".join(verb[:2]) + (" --resume" if "--resume" in verb else ""))
        if verb[:2] == ["train", "init"]:
            (run / "init").mkdir()
        if verb[:2] == ["train", "warmup"]:
            (run / "warmup").mkdir(exist_ok=True)
            if "warmup" in broken:
                return SimpleNamespace(returncode=1)
            (run / "warmup" / "run.json").write_text('{"finished": true}')
        return SimpleNamespace(returncode=1 if verb[1] == "mle" else 0)

    monkeypatch.setattr(steps, "subprocess", SimpleNamespace(run=fake, DEVNULL=subprocess.DEVNULL))
    with pytest.raises(DataError, match="'warmup' ended with status 1"):
        run_recipe(data, run, out=tmp_path / "model")
    broken.clear()
    with pytest.raises(DataError, match="'joint' ended with status 1"):
        run_recipe(data, run, out=tmp_path / "model")
    assert commands == ["train init", "train warmup", "train warmup --resume", "train mle"]
    assert set(json.loads((run / "recipe.json").read_text())["seconds"]) == {"init", "warmup", "joint"}
    assert not (tmp_path / "model").exists()


def test_missing_data_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="flickr8k"):
        run_recipe(tmp_path, tmp_path / "run", out=tmp_path / "model")
    assert not (tmp_path / "run").exists()
