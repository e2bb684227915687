"""The comparison with peers, as far as it goes without them: our own runner, the arithmetic, the table."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tellapart import Captioner, DecodeOptions

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"
PHOTOS = sorted((ROOT / "samples" / "photos").glob("*.jpg"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peers_{name}", PEERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform != "linux", reason="reads times as Linux tells them")
def test_our_runner_gives_twenty_tokens_and_its_cost(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "int8")
    compare = load("compare")
    runner = compare.Runner("tellapart-int8", tmp_path, sys.executable)
    try:
        assert runner.ready["versions"].keys() >= {"numpy", "onnxruntime"}
        answer = runner.ask(str(PHOTOS[0]))
        assert runner.ask("installed")["installed_mib"] > 50
        assert compare.processor_s(runner.process.pid) > 0
    finally:
        runner.end()
    options = DecodeOptions(beams=1, rerank=0.0, min_new_tokens=20, max_new_tokens=20)
    with Captioner.open(tiny_bundle) as captioner:
        assert answer["tokens"] == list(captioner.caption(PHOTOS[0], options=options).token_ids)
    assert len(answer["tokens"]) == 20
    assert answer["caption_ms"] > 0 < answer["preprocess_ms"]
    assert answer["peak_rss_mib"] > 20


def test_a_runner_that_cannot_start_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"tellapart-int8 ended: .*there is no bundle"):
        load("compare").Runner("tellapart-int8", tmp_path, sys.executable)


def test_what_a_distribution_needs_is_read_without_extras() -> None:
    class Some:
        requires = (
            "numpy>=1.24",
            "Pillow (>=10)",
            'torch>=2; extra == "train"',
            "typing_extensions;python_version<'3.11'",
        )

    assert list(load("runner").needed(Some())) == ["numpy", "Pillow", "typing_extensions"]
    assert load("runner").installed_mib(["numpy"]) > load("runner").installed_mib(["no-such-thing"]) == 0


def test_the_table_divides_medians() -> None:
    def page(*ms: float) -> dict[str, object]:
        more = {"preprocess_ms": [2.0], "cold_s": [0.4, 0.5, 0.3], "peak_rss_mib": 100.0}
        return {"ms": list(ms), "installed_mib": 170.0, "same": "5/5", **more}

    peers = {"tellapart-int8": page(10, 30, 20), "eager": page(60, 80, 100)}
    measured = {"peers": peers, "left_out": 1, "quiet": True}
    lines = load("compare").table("compact", measured).splitlines()
    assert (
        "| transformers eager FP32 | 80.0 (60.0 to 100.0) | 4.0 x | 2.0 | 0.40 | 100 | 170 | 5/5 |" in lines
    )
    assert lines[-1] == "3 rounds; 1 turns left out as others used the machine."
    busy = load("compare").table("compact", {**measured, "quiet": False})
    assert busy.endswith("others used the machine in most turns, so only the ratios say something.")


def test_the_networks_have_the_sizes_they_promise(tmp_path: Path) -> None:
    models = load("make_models")
    models.write_words(tmp_path, 5250)
    import json

    words = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(words.values()) == list(range(5250))
    assert words["<|endoftext|>"] == 5249
