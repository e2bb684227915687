"""Every family as Core ML packages in float32, against the network; all without a Mac."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("coremltools", reason="the extra coreml is not installed")

from tellapart.backends import Session  # noqa: E402
from tellapart.backends.coreml import session_of  # noqa: E402
from tellapart.errors import BundleError, ParityError  # noqa: E402
from tellapart.manifest import GraphSpec  # noqa: E402
from tellapart_coreml.package import WEIGHTS, read_package  # noqa: E402
from tellapart_coreml.session import ELSEWHERE, check_program, run_elsewhere  # noqa: E402
from tellapart_export.build import ExportOptions, export_bundle  # noqa: E402
from tellapart_export.families import open_checkpoint  # noqa: E402
from tellapart_export.parity import check_graph, feeds_for  # noqa: E402
from tellapart_export.pictures import drawn_pictures  # noqa: E402
from tellapart_export.to_coreml import coreml_spec, write_coreml  # noqa: E402
from toy_families import (  # noqa: E402
    make_blip,
    make_clip,
    make_clipcap,
    make_git,
    make_siglip,
    make_smolvlm,
    make_vit_gpt2,
)

pytestmark = pytest.mark.train


def graph_alone(source: Any, subject: Any, folder: Path, *, half: bool = False) -> Session:
    spec = coreml_spec(source.spec, window=7, tokens=subject.vocabulary.max_text_tokens, half=half)
    out = folder / spec.file
    write_coreml(source, spec, out)
    program = read_package(out)
    check_program(program, spec)
    return session_of(spec, run_elsewhere(program), name="", providers=ELSEWHERE, pad_id=subject.pad_id)


@pytest.mark.parametrize(
    "make", [make_vit_gpt2, make_blip, make_git, make_clipcap, make_smolvlm, make_clip, make_siglip]
)
def test_every_family_converts(make: Any, tmp_path: Path) -> None:
    subject = dataclasses.replace(open_checkpoint(make(tmp_path / "checkpoint")), positions=6)
    drawn = drawn_pictures(subject.preprocessing.image_px, 3)
    for source in subject.graphs:
        session = graph_alone(source, subject, tmp_path)
        feeds = feeds_for(subject, source, drawn)
        assert [entry.max_abs < 1e-3 for entry in check_graph(source, session, feeds)]


def test_a_step_wired_wrongly_is_found_out(toy_checkpoint: Path, tmp_path: Path) -> None:
    subject = dataclasses.replace(open_checkpoint(toy_checkpoint), positions=6)
    source = subject.graphs[1]

    class Late(torch.nn.Module):  # one place too far
        def __init__(self) -> None:
            super().__init__()
            self.inner = source.module

        def forward(self, ids: Any, past_kv: Any, cross_kv: Any, position: Any = None) -> Any:
            return self.inner(ids, past_kv, cross_kv, None if position is None else position + 1)

    session = graph_alone(dataclasses.replace(source, module=Late()), subject, tmp_path)
    with pytest.raises(ParityError, match="differs from the network"):
        check_graph(source, session, feeds_for(subject, source, drawn_pictures(32, 3)))


def test_other_weights_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def spoiled(source: Any, spec: GraphSpec, out: Path) -> None:
        write_coreml(source, spec, out)
        if spec.role == "text":
            weights = out / WEIGHTS
            content = np.fromfile(weights, np.uint8)
            content[5000:9000] = np.roll(content[5000:9000], 64)
            content.tofile(weights)

    monkeypatch.setattr("tellapart_export.build.write_coreml", spoiled)
    checkpoint = make_clip(tmp_path / "checkpoint")
    with pytest.raises((ParityError, BundleError), match=r"text|damaged"):
        export_bundle(checkpoint, tmp_path / "out", ExportOptions(targets=("coreml",)))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_whole_numbers_stay_out_of_halves(tmp_path: Path) -> None:
    from tellapart_export.graphs import text_graph

    class Rounding(torch.nn.Module):  # ids above 2048 would come out as their neighbours
        def forward(self, ids: Any) -> Any:
            return ids.clamp(max=9).float()

    source = text_graph(Rounding(), 4, example=torch.ones(2, 4, dtype=torch.int64))
    spec = coreml_spec(source.spec, window=1, tokens=4)
    write_coreml(source, spec, tmp_path / spec.file)
    with pytest.raises(ParityError, match="has gaps above 2048"):
        check_program(read_package(tmp_path / spec.file), spec)
