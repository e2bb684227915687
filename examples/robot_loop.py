"""Caption what a robot sees: JSON lines of new scenes, from a camera, a video file or a folder of photos.

    python examples/robot_loop.py                   the sample photos, one after the other
    python examples/robot_loop.py 0                 the first camera (pip install opencv-python-headless)
    python examples/robot_loop.py drive.mp4 --all   a video in its own time; also looks that say nothing new

Stop with Ctrl-C. Every line has the time the frame arrived, its age when the line was written, and how many
frames were dropped for newer ones; `truncated` says that the deadline cut the caption.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tellapart import Captioner, DecodeOptions, LiveCaptions, LiveOptions, SceneGate, TellapartError
from tellapart.types import ImageInput

SAMPLES = Path(__file__).parents[1] / "samples" / "photos"


def frames_of(source: str) -> Iterator[ImageInput]:
    """Frames of a camera by its number, of a video file in its own time, or the images of a folder."""
    if Path(source).is_dir():
        yield from sorted(Path(source).glob("*.jpg"))
        return
    import cv2

    is_camera = source.isdecimal()
    capture = cv2.VideoCapture(int(source) if is_camera else source)
    try:
        if not capture.isOpened():
            raise OSError(f"cannot open {source}")
        pause_s = 0.0 if is_camera else 1.0 / (capture.get(cv2.CAP_PROP_FPS) or 25.0)
        started_s, number = time.monotonic(), 0
        while True:
            there, frame = capture.read()
            if not there:
                if is_camera:
                    raise OSError("the camera gives no more frames")
                return
            yield frame[..., ::-1]  # OpenCV has blue first; a view, so that a dropped frame costs nothing
            number += 1
            time.sleep(max(0.0, started_s + number * pause_s - time.monotonic()))
    finally:
        capture.release()


def main(argv: list[str] | None = None) -> int:
    """Watch until the source ends."""
    parser = argparse.ArgumentParser(description="Caption new scenes as JSON lines.")
    parser.add_argument("source", nargs="?", default=str(SAMPLES), help="camera number, video file or folder")
    parser.add_argument("--looks-per-second", type=float, default=2.0, metavar="N")
    parser.add_argument("--deadline-ms", type=float, default=400.0, metavar="MS")
    parser.add_argument("--all", action="store_true", help="also looks at an unchanged scene")
    parser.add_argument("--embedding", action="store_true", help="add the image embedding to each line")
    parser.add_argument("--model", metavar="BUNDLE")
    args = parser.parse_args(argv)
    folder = Path(args.source).is_dir()
    options = LiveOptions(
        look_every_s=0.0 if folder else 1.0 / args.looks_per_second,
        deadline_ms=args.deadline_ms,
        wait=folder,  # every photo of a folder counts; of a camera, the present does
        decode=DecodeOptions(beams=1),
    )
    gate = SceneGate(patience=0 if folder else 4)  # photos of a folder need not come to rest
    with (
        Captioner.open(args.model) as captioner,
        LiveCaptions(captioner, frames_of(args.source), options=options, gate=gate) as live,
    ):
        try:
            for result in live:
                if args.all or result.state in ("new", "failed"):
                    print(json.dumps(result.to_record(embedding=args.embedding)), flush=True)
        except KeyboardInterrupt:
            pass
        except TellapartError as error:  # the camera failed, fell silent, or the runtime did
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        print(f"{live.frames} frames, {live.dropped} dropped, {live.captioned} captioned", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
