"""The bench: what it counts, and that its clock and its memory are the right ones."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tellapart import bench as bench_module
from tellapart.bench import bench, drawn_photos, peak_rss_mib, peak_rss_of_bundle_mib
from tellapart.captioner import Captioner
from tellapart.cli import main
from tellapart.errors import TellapartError, UsageError
from tellapart.types import DecodeOptions, RuntimeOptions

SDK = Path(__file__).parents[2] / "sdk"


def test_a_report_counts_rounds_stages_and_bytes(tiny_bundle: Path) -> None:
    (report,) = bench(
        [tiny_bundle], drawn_photos(2), runtime=RuntimeOptions(), options=DecodeOptions(), rounds=3
    )
    assert (report.bundle, report.rounds) == ("tiny", 3)
    assert set(report.stages) == {"load", "preprocess", "vision", "decode", "total", "text"}
    for times in report.stages.values():
        assert 0 <= times.p50_ms <= times.p95_ms
    assert report.stages["load"].first_ms > report.stages["load"].p50_ms
    # Independent of the manifest: what lies on the disk, less the manifest itself.
    on_disk = sum(path.stat().st_size for path in tiny_bundle.iterdir() if path.name != "tellapart.json")
    assert report.size_mib * 1024 * 1024 == pytest.approx(on_disk)
    json.dumps(report.to_record(), allow_nan=False)


def test_percentiles_and_rate_follow_from_the_samples(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([50.0, *(float(ms) for ms in range(1, 22))])
    with Captioner.open(tiny_bundle) as captioner:
        caption = captioner.caption(drawn_photos(1)[0])
    tokens = len(caption.token_ids)

    def one_round(*_: object) -> object:
        ms = next(times)
        return caption, {"decode": ms, "total": ms + 1}

    monkeypatch.setattr(bench_module, "_one_round", one_round)
    (report,) = bench([tiny_bundle], [b""], runtime=RuntimeOptions(), options=DecodeOptions(), rounds=22)
    decode = report.stages["decode"]
    # 1 to 21: the median is 11, and 95 % of the way from 1 to 21 is 20; the first round, 50, is kept apart.
    assert (decode.first_ms, decode.p50_ms, decode.p95_ms) == (50.0, 11.0, 20.0)
    assert report.tokens_per_s == pytest.approx(22 * tokens / ((50 + 231) / 1000))


def test_two_bundles_are_timed_in_turns(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Captioner.open(tiny_bundle) as captioner:
        caption = captioner.caption(drawn_photos(1)[0])
    seen: list[tuple[int, object]] = []
    ids: dict[int, int] = {}

    def one_round(captioner: object, image: object, options: object) -> object:
        seen.append((ids.setdefault(id(captioner), len(ids)), image))
        return caption, {"total": 1.0}

    monkeypatch.setattr(bench_module, "_one_round", one_round)
    reports = bench(
        [tiny_bundle, tiny_bundle], ["x", "y"], runtime=RuntimeOptions(), options=DecodeOptions(), rounds=3
    )
    assert seen == [(0, "x"), (1, "x"), (1, "y"), (0, "y"), (0, "x"), (1, "x")]
    assert [report.peak_rss_mib for report in reports] == [None, None]


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_is_what_was_held_once(tiny_bundle: Path) -> None:
    before = peak_rss_mib()
    assert before is not None
    held = bytearray(64 * 1024 * 1024)
    held[::4096] = b"x" * len(held[::4096])
    del held
    after = peak_rss_mib()
    assert after is not None
    # A mark, not a level: the memory is gone and the mark stays. Other tests may have set it higher before.
    assert after >= before
    assert after > 64


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_against_another_bundle_gives_ratios_and_memory_of_each(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SDK))
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    arguments = ["bench", "--model", str(tiny_bundle), "--against", str(other), "--rounds", "2", "--json"]
    assert main(arguments) == 0
    page = json.loads(capsys.readouterr().out)
    assert len(page["bundles"]) == 2
    assert all(20 < record["peak_rss_mib"] < 2000 for record in page["bundles"])
    assert page["ratio"]["size"] == 1.0
    assert page["ratio"]["total_p50"] > 0


def test_a_memory_process_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SDK))
    with pytest.raises(TellapartError, match="there is no bundle at"):
        peak_rss_of_bundle_mib(tmp_path / "gone", runtime=RuntimeOptions(), options=DecodeOptions())


def test_nothing_to_measure_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="at least one round"):
        bench([tiny_bundle], [b""], runtime=RuntimeOptions(), options=DecodeOptions(), rounds=0)
    with pytest.raises(UsageError, match="one image"):
        bench([tiny_bundle], [], runtime=RuntimeOptions(), options=DecodeOptions(), rounds=1)


def test_drawn_photos_are_the_same_in_every_run() -> None:
    assert drawn_photos(2) == drawn_photos(2)
    assert len(set(drawn_photos(3))) == 3


def test_the_table_is_for_people(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", str(tiny_bundle), "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert "p95" in out
    assert "tokens a second, peak memory" in out
