"""The page of a bundle's proofs and measurements: all figures are on it, nothing from outside is markup."""

from __future__ import annotations

import dataclasses

from tellapart.bundle import open_bundle
from tellapart.report_page import report_page

METRICS = {
    "quantization": {
        "scheme": "vnni",
        "size_mib": {"reference": 80.74, "int8": 21.55},
        "step_ms": {"reference": 1.178, "int8": 0.575},
        "tried": [{"scheme": "vnni", "kept": True}, {"scheme": "weights", "kept": False}],
        "bags": {"3": {"drop": 0.28, "drop_ci95": [-1.11, 1.67]}},
        "deep": {"one": {"two": {"three": 3}}},
        "nothing": {},
    },
    "confidence": {"threshold": 0.518},
}
PARITY = {
    "photos": "<b>photos</b> | of\nmine",
    "graphs": {"decoder.logits": {"max_abs": 7.62939453125e-06, "cosine": 1.0}},
    "device": "unproved on device",
}


def test_every_figure_is_on_the_page(tiny_bundle):
    with open_bundle(tiny_bundle) as bundle:
        manifest = dataclasses.replace(bundle.manifest, metrics=METRICS, parity=PARITY)
    page = report_page(manifest)
    lines = page.split("\n")
    # Records of the same keys stand below one another.
    at = lines.index("| | reference | int8 |")
    assert lines[at + 2 : at + 4] == ["| size mib | 80.74 | 21.55 |", "| step ms | 1.178 | 0.575 |"]
    assert "| decoder.logits | 7.629e-06 | 1 |" in lines
    assert "| 2 | weights | no |" in lines
    assert "| 3 | 0.28 | -1.11, 1.67 |" in lines
    assert "| two | 3 |" in lines
    assert "| threshold | 0.518 |" in lines
    assert "| device | unproved on device |" in lines
    assert "| photos | &lt;b>photos&lt;/b> \\| of mine |" in lines
    assert all(name in page for name in manifest.files)


def test_a_bundle_without_reports_has_a_page_too(tiny_bundle):
    with open_bundle(tiny_bundle) as bundle:
        manifest = dataclasses.replace(bundle.manifest, metrics={}, parity={}, source={})
    assert "Nothing was compared." in report_page(manifest)
