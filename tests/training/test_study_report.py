"""Tables, differences and plot from figures made by hand; no network anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tellapart.errors import DataError
from tellapart_training.study.__main__ import main
from tellapart_training.study.report import differences, plot, read_results, tables

pytestmark = pytest.mark.train


def _figures(rd100: float, cider: float, **more: float) -> dict[str, float]:
    return {"judge.judge.rd100": rd100, "cider_d": cider, **more}


@pytest.fixture
def results() -> dict[str, Any]:
    """Two rows with seeds in another order, one seed unmatched; a row without `val`; one without runs."""
    return {
        "commit": "abc",
        "rows": {
            "human": {
                "title": "human captions",
                "runs": [{"seed": 0, "val": _figures(0.75, 0.9), "coco_val100": _figures(0.8, 1.0)}],
            },
            "mle": {
                "title": "MLE",
                "runs": [
                    {"seed": 0, "val": _figures(0.50, 0.50, fluency=-2.5)},
                    {"seed": 1, "val": _figures(0.54, 0.52, fluency=-2.7)},
                ],
            },
            "sr": {
                "title": "SR, random batches",
                "runs": [
                    {"seed": 1, "val": _figures(0.64, 0.42)},
                    {"seed": 0, "val": _figures(0.63, 0.44)},
                    {"seed": 2, "val": _figures(0.99, 0.40)},
                ],
            },
            "cider": {"title": "CIDEr", "runs": [{"seed": 0, "coco_val100": _figures(0.2, 0.1)}]},
            "sr-hard": {"title": "SR, fixed hard bags of 5", "runs": []},
        },
        "training": {
            "sr": {
                "steps_per_s": 0.512, "time_sampling": 0.6, "time_scoring": 0.1,
                "time_backward": 0.2, "time_other": 0.1,
            },
            "gone": {
                "steps_per_s": 1, "time_sampling": 1, "time_scoring": 0, "time_backward": 0, "time_other": 0,
            },
        },
    }  # fmt: skip


def _cells(text: str, title: str) -> list[list[str]]:
    """Cells of every table row that starts with a title."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [[cell.strip() for cell in row] for row in rows]


def test_tables_show_means_and_spreads(results: dict[str, Any]) -> None:
    text = tables(results)
    # 50 and 54: mean 52, standard deviation with n - 1 is 4 / sqrt(2) = 2.83.
    assert _cells(text, "MLE") == [["MLE", "2", "52.0 ± 2.8", "0.510 ± 0.014", "-2.60 ± 0.14"]]
    # One run has no spread, a figure that was not measured an empty cell; each set has its own table.
    assert _cells(text, "human captions") == [
        ["human captions", "1", "75.0", "0.900", ""],
        ["human captions", "1", "80.0", "1.000"],
    ]
    assert _cells(text, "CIDEr") == [["CIDEr", "1", "20.0", "0.100"]]
    assert _cells(text, "SR, fixed hard bags of 5") == []
    heads = [line for line in text.splitlines() if line.startswith("| row | runs |")]
    assert heads == [
        "| row | runs | RD100 judge | CIDEr-D | fluency |",
        "| row | runs | RD100 judge | CIDEr-D |",
    ]


def test_differences_are_of_the_same_seed(results: dict[str, Any]) -> None:
    found = differences(results["rows"], "sr", "mle", "judge.judge.rd100")
    assert found == pytest.approx([0.13, 0.10])  # by seed; seed 2 has no partner
    assert differences(results["rows"], "sr", "mle", "fluency") == []
    assert differences(results["rows"], "sr", "cider", "cider_d") == []
    assert differences(results["rows"], "sr", "absent", "cider_d") == []
    text = tables(results)
    [line] = [line for line in text.splitlines() if " less " in line and not line.startswith("| row less")]
    assert line.startswith(
        "| SR, random batches less MLE | +11.5 (+13.0, +10.0) |  | -0.080 (-0.060, -0.100) |"
    )


def test_speed_is_told_where_it_is_known(results: dict[str, Any]) -> None:
    text = tables(results)
    assert "| SR, random batches | 0.51 | 60 % | 10 % | 20 % | 10 % |" in text
    assert "| gone | 1.00 | 100 % |" in text
    del results["training"]
    assert "Speed" not in tables(results)


def test_the_plot_has_a_point_for_each_run_and_leaves_empty_rows_out(
    results: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "docs/plot.svg"
    plot(results, out)
    first = out.read_bytes()
    text = first.decode()
    assert text.count('id="PathCollection') == 2 * 3  # human, mle, sr: points, and their marks in the legend
    assert "<!-- SR, random batches -->" in text
    assert "<!-- CIDEr -->" not in text
    plot(results, out)
    assert out.read_bytes() == first
    assert list(out.parent.iterdir()) == [out]
    for row in results["rows"].values():
        row["runs"] = []
    with pytest.raises(DataError, match="nothing to draw"):
        plot(results, out)
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"rows": []}', '{"rows": {"a": 1}}', '{"rows": {"a": {"runs": []}}}', '{"judged": 1}'],
)
def test_damaged_figures_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match="study measure"):
        read_results(path)


def test_report_prints_and_draws_or_fails_without_a_traceback(
    results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    path, svg = tmp_path / "results.json", tmp_path / "plot.svg"
    command = ["report", "--results", str(path), "--plot", str(svg)]
    assert main(command) == 1
    assert "study measure" in capsys.readouterr().err
    path.write_text(json.dumps(results))
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith("### Flickr8k `val`")
    assert str(svg) in err
    assert svg.read_text().startswith("<?xml")


def test_wrong_usage_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["paint"], [], ["examples", "--before", "x.json"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
    assert main(["run", "--run", str(tmp_path / "run"), "--workers", "0"]) == 2
    assert "--workers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["measure", "--run", str(tmp_path / "run"), "--data", str(tmp_path)]) == 1
    assert "no finished run" in capsys.readouterr().err


def test_the_first_step_that_fails_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    run = tmp_path / "run"
    places = ["--run", str(run), "--data", str(tmp_path / "none"), "--embedded", str(tmp_path / "none")]
    assert main(["run", *places]) == 1
    told = capfd.readouterr().err
    assert "step 'bags' ended with status" in told
    assert "[2/5]" not in told
    assert list(json.loads((run / "study.json").read_text())["seconds"]) == ["bags"]
