"""How well the live loop tells changes of scene, and what it costs: a rendered video whose changes are known.

    python benchmarks/live_changes.py PHOTOS [--scenes 24] [--every-look] [--looks-per-second 2]

Every scene is a photo under a camera that sways, with noise, flickering light, and in every third scene
somebody who walks through. Scenes change by a cut or by a cross-fade, in turns. The video plays in real
time, at 15 frames a second. A change counts as reported when a caption comes between its start and the
next one; any further caption of a scene is a false alarm. Processor time is that of the whole process, less
that of playing the same video to nobody. Needs opencv-python-headless.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tellapart import Captioner, DecodeOptions, LiveCaptions, LiveOptions
from tellapart.types import PixelArray

FPS = 15
WIDTH, HEIGHT = 320, 240
FADE_S = 0.4


def scene_frames(photo: PixelArray, count: int, *, walker: bool, rng: np.random.Generator) -> Iterator[Any]:
    """Frames (240, 320, 3) float32 of one photo under a restless camera."""
    import cv2

    big = cv2.resize(photo, (WIDTH * 11 // 10, HEIGHT * 11 // 10), interpolation=cv2.INTER_AREA)
    phase = rng.uniform(0, 2 * math.pi, 3)
    for number in range(count):
        time_s = number / FPS
        left = round(WIDTH * 0.05 * (1 + 0.6 * math.sin(0.9 * time_s + phase[0])))
        top = round(HEIGHT * 0.05 * (1 + 0.6 * math.sin(0.7 * time_s + phase[1])))
        frame = big[top : top + HEIGHT, left : left + WIDTH].astype(np.float32)
        frame *= 1 + 0.06 * math.sin(5 * time_s + phase[2])
        frame += rng.normal(0, 5, frame.shape)
        if walker:  # a third of the width, across the whole frame in about a second
            middle = int((time_s - 1.2) * WIDTH)
            frame[HEIGHT // 4 :, max(0, middle - WIDTH // 6) : max(0, middle + WIDTH // 6)] = (40, 44, 60)
        yield frame


def render(photos: Sequence[PixelArray], file: Path, *, scenes: int, rng: np.random.Generator) -> list[float]:
    """Write the video (Motion JPEG); returns at which second each scene begins."""
    import cv2

    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (WIDTH, HEIGHT))
    starts, number = [], 0
    before = None
    for scene in range(scenes):
        starts.append(number / FPS)
        count = int(rng.uniform(3.0, 6.0) * FPS)
        fading = 0 if scene % 2 else int(FADE_S * FPS)
        frames = scene_frames(photos[scene % len(photos)], count, walker=scene % 3 == 2, rng=rng)
        for place, frame in enumerate(frames):
            shown = frame
            if before is not None and place < fading:
                share = (place + 1) / (fading + 1)
                shown = share * frame + (1 - share) * before
            writer.write(np.clip(shown, 0, 255).astype(np.uint8)[..., ::-1])
            number += 1
        before = frame
    writer.release()
    return starts


def play(file: Path, *, in_time: bool = True) -> Iterator[PixelArray]:
    """The frames of a video, RGB, in its own time or at once."""
    import cv2

    capture = cv2.VideoCapture(str(file))
    started_s, number = time.monotonic(), 0
    while True:
        there, frame = capture.read()
        if not there:
            break
        yield frame[..., ::-1]
        number += 1
        if in_time:
            time.sleep(max(0.0, started_s + number / FPS - time.monotonic()))
    capture.release()


def judge(starts: Sequence[float], reported: Sequence[float]) -> dict[str, Any]:
    """Hold the seconds of captions against the seconds at which scenes began.

    A caption within the fade after a start belongs to the new scene, as does every one until the next start.
    """
    delays, extra = [], 0
    ends = [*starts[1:], math.inf]
    for start, end in zip(starts, ends, strict=True):
        told = [second for second in reported if start <= second < end]
        if told:
            delays.append(told[0] - start)
        extra += len(told[1:])
    return {
        "changes": len(starts),
        "reported": len(delays),
        "false_alarms": extra,
        "delay_s": {"median": float(np.median(delays)), "largest": max(delays)} if delays else None,
    }


def watch(
    model: str | None, file: Path, starts: Sequence[float], *, every_look: bool, look_every_s: float
) -> dict[str, Any]:
    """Play the video to the loop, then to nobody."""
    options = LiveOptions(
        look_every_s=look_every_s, refresh_s=1e-6 if every_look else None, decode=DecodeOptions(beams=1)
    )
    reported: list[float] = []
    ages: list[float] = []
    with Captioner.open(model) as captioner, LiveCaptions(captioner, play(file), options=options) as live:
        cpu_s, wall_s = time.process_time(), time.monotonic()
        for result in live:
            if result.caption is not None:
                reported.append((result.frame - 1) / FPS)
                ages.append(result.age_ms)
        cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
        frames, dropped, captioned = live.frames, live.dropped, live.captioned
    alone_s = time.process_time()
    for _ in play(file):
        pass
    cpu_s -= time.process_time() - alone_s
    return {
        **judge(starts, reported),
        "seconds": round(wall_s, 1),
        "frames": frames,
        "dropped": dropped,
        "captions_per_s": round(captioned / wall_s, 2),
        "age_ms": {"median": round(float(np.median(ages)), 1), "largest": round(max(ages), 1)},
        "core_share": round(cpu_s / wall_s, 4),
    }


def main(argv: list[str] | None = None) -> int:
    """Render, watch, report."""
    parser = argparse.ArgumentParser(description="Changes told, false alarms and share of a core.")
    parser.add_argument("photos", type=Path, help="folder of photos, or an uncompressed tar of them")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument(
        "--every-look", action="store_true", help="caption every look, for the cost at 2 a second"
    )
    parser.add_argument(
        "--looks-per-second", type=float, default=2.0, help="at most; a look waits for the next frame"
    )
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--model", metavar="BUNDLE")
    args = parser.parse_args(argv)
    from tellapart.photos import Photos

    rng = np.random.default_rng(args.seed)
    with Photos(args.photos) as pile, tempfile.TemporaryDirectory() as scratch:
        names = rng.permutation(pile.names)[: args.scenes]
        photos = [pile.read(name) for name in names]
        file = Path(scratch) / "changes.avi"
        starts = render(photos, file, scenes=args.scenes, rng=rng)
        look_every_s = 1.0 / args.looks_per_second
        found = watch(args.model, file, starts, every_look=args.every_look, look_every_s=look_every_s)
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
