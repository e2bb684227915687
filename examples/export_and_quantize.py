"""Turn a checkpoint into a device bundle, make it INT8, and caption with it: what a device then carries.

    pip install "tellapart[export,quantize]"
    python examples/export_and_quantize.py                       what train_tiny.py made (it is run first)
    python examples/export_and_quantize.py CHECKPOINT PHOTOS OUT  yours

Both steps prove what they made and refuse to publish what is worse than promised: graphs that do not caption
as the network does, and INT8 that agrees with float in fewer than nine of ten tokens.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tellapart import Captioner


def main(argv: list[str] | None = None) -> int:
    """Export, quantize, compare."""
    from tellapart_export.build import ExportOptions, export_bundle
    from tellapart_quantization.build import QuantizeOptions, quantize_bundle

    arguments = sys.argv[1:] if argv is None else argv
    tiny = Path(arguments[0] if len(arguments) == 1 else "runs/tiny")
    if len(arguments) == 3:
        checkpoint, photos, out = map(Path, arguments)
    else:
        checkpoint, photos, out = tiny / "run" / "best", tiny / "images", tiny / "bundles"
        if not checkpoint.exists():
            subprocess.run([sys.executable, Path(__file__).with_name("train_tiny.py"), tiny], check=True)
    out.mkdir(exist_ok=True)
    export_bundle(checkpoint, out / "float", ExportOptions(images=photos, limit=40, overwrite=True))
    manifest = quantize_bundle(
        out / "float",
        out / "int8",
        QuantizeOptions(images=photos, calibration_limit=40, check_images=40, overwrite=True),
    )
    found = manifest.metrics["quantization"]
    print(f"{found['size_mib']['reference']} MiB float, {found['size_mib']['int8']} MiB INT8,", end=" ")
    print(f"{found['token_agreement']:.1%} of tokens agree")
    with Captioner.open(out / "int8") as captioner:
        for photo in sorted(photos.iterdir())[-3:]:
            print(f"{photo.name}: {captioner.caption(photo).text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
