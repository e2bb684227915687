"""Any image a user may hand over -> upright RGB pixels, or a typed error that names it.

The size in an image's header is held against a limit before anything is decoded; Pillow's own guard, a
global of the whole process, stays as the application set it. `image_file` does the work on files.

What is done to unusual images:

- animated or many-paged: the first frame (a PIL image: the frame it stands at);
- transparent, in any mode: composited on white;
- 16 bits: scaled to 8, 65535 becoming 255; 32-bit and floating pixels have no known range and are refused;
- CMYK, grayscale, black and white, palette: converted to RGB;
- EXIF orientation: applied, for files and PIL images alike.
"""

from __future__ import annotations

import io
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tellapart.errors import ImageTooLargeError, ShapeError, UnreadableImageError, UsageError
from tellapart.image_file import open_file, open_header, to_pixels
from tellapart.types import ImageInput, PixelArray

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

DEFAULT_MAX_MEGAPIXELS = 50.0
"""Largest image that is decoded, in millions of pixels; 150 MB as RGB."""

MAX_MEGAPIXELS_VARIABLE = "TELLAPART_MAX_MEGAPIXELS"
"""Environment variable that replaces the default; an argument is stronger."""

# Silencing warnings changes the whole process for a moment, so only one thread may do it at a time.
_QUIET = threading.Lock()


def load_image(image: ImageInput, *, max_megapixels: float | None = None) -> PixelArray:
    """Upright RGB pixels of one image.

    Args:
        image: a path, the bytes of an image file, a PIL image, or a (h, w, 3) uint8 RGB array. It is not
            changed; an array comes back as it is, or as a copy where its memory is not in order.
        max_megapixels: largest image in millions of pixels, judged by its header before decoding; None
            reads TELLAPART_MAX_MEGAPIXELS, or is 50. Arrays are decoded already and not judged.

    Returns:
        (h, w, 3) uint8, C-contiguous, RGB.

    Raises:
        UnreadableImageError: no such file, a folder, empty, or not an image.
        TruncatedImageError: an image that breaks off or is damaged.
        ImageTooLargeError: more pixels than the limit.
        ShapeError: an array that is not (h, w, 3) uint8.
        UsageError: something that is no image at all, or a limit that is no number above 0.
        MissingExtraError: Pillow is not installed.
    """
    limit = pixel_limit(max_megapixels)
    if isinstance(image, np.ndarray):
        return np.ascontiguousarray(check_pixels(image))
    name = image_name(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _read_stream(io.BytesIO(image), name, limit)
    if isinstance(image, (str, os.PathLike)):
        with open_file(name) as stream:
            return _read_stream(stream, name, limit)
    if "PIL" in sys.modules:
        from PIL import Image

        if isinstance(image, Image.Image):
            picture = image
            _check_size(picture, name, limit)
            return _quietly(lambda: to_pixels(picture, name))
    raise UsageError(
        f"an image is a path, the bytes of an image file, a PIL image or a (h, w, 3) uint8 array, "
        f"got {type(image).__name__}"
    )


def image_name(image: Any) -> str:
    """What errors and results call an image: its path, or what kind of thing it is."""
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(image, np.ndarray):
        return "<array>"
    filename = getattr(image, "filename", "")
    return filename if isinstance(filename, str) and filename else f"<{type(image).__name__}>"


def check_pixels(array: Any) -> PixelArray:
    """The array itself, if it is (h, w, 3) uint8.

    Raises:
        ShapeError: it is not; the message says how to get there.
    """
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if not isinstance(array, np.ndarray) or array.ndim != 3 or 0 in array.shape or array.shape[2] != 3:
        hint = "pixels of one image, colour last"
        if isinstance(array, np.ndarray) and array.ndim == 2:
            hint = "a gray image needs its values three times: np.stack([gray] * 3, axis=-1)"
        elif isinstance(array, np.ndarray) and array.ndim == 3 and array.shape[2] == 4:
            hint = "drop the fourth channel, or hand over the PIL image, which is composited on white"
        elif isinstance(array, np.ndarray) and array.ndim == 3 and array.shape[0] == 3:
            hint = "colour comes last: array.transpose(1, 2, 0)"
        elif isinstance(array, np.ndarray) and array.ndim == 4:
            hint = "one image at a time; for many, hand over a list of arrays"
        raise ShapeError(f"an image array must be (h, w, 3) uint8 RGB, got shape {shape}; {hint}")
    if array.dtype != np.uint8:
        raise ShapeError(
            f"an image array must be uint8 with values 0 to 255, got {dtype}; "
            "scale it, then array.astype(np.uint8)"
        )
    return array


def pixel_limit(max_megapixels: float | None = None) -> int:
    """The limit in pixels: the argument, else the environment variable, else 50 million.

    Raises:
        UsageError: not a number above 0.
    """
    source, value = "max_megapixels", max_megapixels
    if value is None:
        text = os.environ.get(MAX_MEGAPIXELS_VARIABLE, "").strip()
        if not text:
            return int(DEFAULT_MAX_MEGAPIXELS * 1e6)
        source = MAX_MEGAPIXELS_VARIABLE
        try:
            value = float(text)
        except ValueError:
            value = math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        shown = os.environ.get(MAX_MEGAPIXELS_VARIABLE) if max_megapixels is None else max_megapixels
        raise UsageError(f"{source} must be a number of megapixels above 0, got {shown!r}")
    return int(value * 1e6)


def _quietly(read: Callable[[], PixelArray]) -> PixelArray:
    """Run, and where Pillow's warnings are errors in this process, run again without them.

    Pillow warns of things that do not matter here, such as a broken EXIF block. Its warnings are left
    alone unless they would stop the work, because silencing them is not safe between threads.
    """
    try:
        return read()
    except Warning:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()


def _read_stream(stream: IO[bytes], name: str, limit: int) -> PixelArray:
    def read() -> PixelArray:
        with open_header(stream, name) as picture:
            _check_size(picture, name, limit)
            return to_pixels(picture, name)

    return _quietly(read)


def _check_size(picture: PILImage, name: str, limit: int) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise UnreadableImageError(f"{name} has no pixels ({width} x {height})", image=name)
    if width * height > limit:
        raise ImageTooLargeError(
            f"{name} is {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"over the limit of {limit / 1e6:g}; make it smaller, "
            f"or raise max_megapixels or {MAX_MEGAPIXELS_VARIABLE}",
            image=name,
        )
