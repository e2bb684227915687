"""Any image a user may hand over -> upright RGB pixels, or a typed error that names it.

Pillow decodes, and is imported when the first image arrives. Its rough edge: it reads some forty formats,
one of which starts another program, and its guard against huge pictures is a global of the whole process
that warns at 89 megapixels. So the first bytes decide here which of a few picture formats to load, and the
size in the header is held against our own limit before anything is decoded. Pillow's global stays as the
application set it.

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
import stat
import sys
import threading
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from tellapart.errors import (
    ImageError,
    ImageTooLargeError,
    MissingExtraError,
    ShapeError,
    TruncatedImageError,
    UnreadableImageError,
    UsageError,
)
from tellapart.types import ImageInput, PixelArray

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image as PILImage

T = TypeVar("T")

DEFAULT_MAX_MEGAPIXELS = 50.0
"""Largest image that is decoded, in millions of pixels; 150 MB as RGB."""

MAX_MEGAPIXELS_VARIABLE = "TELLAPART_MAX_MEGAPIXELS"
"""Environment variable that replaces the default; an argument is stronger."""

_PLUGINS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "GIF": "GifImagePlugin",
    "BMP": "BmpImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
}
_FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000 or AVIF"

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
        with _open_file(name) as stream:
            return _read_stream(stream, name, limit)
    if "PIL" in sys.modules:
        from PIL import Image

        if isinstance(image, Image.Image):
            picture = image
            _check_size(picture, name, limit)
            return _quietly(lambda: _to_pixels(picture, name))
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


def _open_file(path: str) -> IO[bytes]:
    """A regular file; a named pipe would block for ever and a device would never end."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UnreadableImageError(f"{path} is a folder; name the image files in it", image=path)
        if not stat.S_ISREG(mode):
            raise UnreadableImageError(
                f"{path} is not a regular file; hand over its bytes instead", image=path
            )
        return open(path, "rb")
    except FileNotFoundError as error:
        hint = "; tellapart fetches nothing from the network" if "://" in path else "; check the path"
        raise UnreadableImageError(f"there is no file {path}{hint}", image=path) from error
    except (OSError, ValueError) as error:  # no permission, a NUL in the path, a name too long
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImageError(f"{path!r} cannot be opened: {reason}", image=path) from error


def _pillow(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        if name.endswith("Plugin") and "PIL.Image" in sys.modules:
            raise  # this Pillow was built without that format
        raise MissingExtraError(
            "cpu", "Reading an image file needs Pillow, which is not installed"
        ) from error


def _quietly(read: Callable[[], T]) -> T:
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
        with _open_header(stream, name) as picture:
            _check_size(picture, name, limit)
            return _to_pixels(picture, name)

    return _quietly(read)


def _sniff(start: bytes) -> str:
    """The format by its first bytes, "" for none that is read here."""
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith(b"BM"):
        return "BMP"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace():
        return "PPM"
    if start.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return "JPEG2000"
    if start[4:8] == b"ftyp":
        # HEIF only works where the application registered a plugin for it.
        return "AVIF" if start[8:12] in (b"avif", b"avis") else "HEIF"
    return ""


def _open_header(stream: IO[bytes], name: str) -> PILImage:
    """Read no further than the header; calls the one plugin, as `Image.open` would load them all."""
    stream.seek(0)
    start = stream.read(16)
    if not start:
        raise UnreadableImageError(f"{name} is empty (0 bytes); fetch or copy it again", image=name)
    Image = _pillow("PIL.Image")
    kind = _sniff(start)
    if not kind:
        raise UnreadableImageError(f"{name} is not an image that is read here ({_FORMATS})", image=name)
    try:
        if kind in _PLUGINS:
            _pillow(f"PIL.{_PLUGINS[kind]}")
        factory = Image.OPEN[kind][0]
    except (ImportError, KeyError) as error:
        raise UnreadableImageError(
            f"{name} is {kind}, which this Pillow cannot read; convert it to JPEG or PNG", image=name
        ) from error
    stream.seek(0)
    try:
        picture: PILImage = factory(stream, "")
    except Image.DecompressionBombError as error:
        raise _guarded(name, error) from error
    except Warning:
        raise
    except (
        Exception
    ) as error:  # plugins raise what they like: SyntaxError, struct.error, ValueError, KeyError
        raise TruncatedImageError(
            f"{name} begins as {kind} and its header is damaged or breaks off ({error}); "
            "fetch or copy it again",
            image=name,
        ) from error
    return picture


def _guarded(name: str, error: Exception) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"{name} is refused by Pillow's own guard ({error}); make it smaller, "
        "or raise PIL.Image.MAX_IMAGE_PIXELS in your program if you trust it",
        image=name,
    )


def _check_size(picture: PILImage, name: str, limit: int) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise UnreadableImageError(f"{name} has no pixels ({width} x {height})", image=name)
    if width * height > limit:
        raise ImageTooLargeError(
            f"{name} is {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"over the limit of {limit / 1e6:g}; make it smaller, or raise max_megapixels or {MAX_MEGAPIXELS_VARIABLE}",
            image=name,
        )


def _to_pixels(picture: PILImage, name: str) -> PixelArray:
    """Decode, convert, turn upright; the picture itself keeps its mode and size."""
    Image = _pillow("PIL.Image")
    try:
        picture.load()
    except Image.DecompressionBombError as error:
        raise _guarded(name, error) from error
    except Warning:
        raise
    except MemoryError as error:
        raise UnreadableImageError(f"{name} does not fit in memory; make it smaller", image=name) from error
    except Exception as error:  # as when opening
        raise TruncatedImageError(
            f"{name} breaks off or is damaged ({error}); fetch or copy it again", image=name
        ) from error
    try:
        pixels = _to_rgb(picture, name)
    except (Warning, ImageError):
        raise
    except Exception as error:  # LAB and what else Pillow cannot convert
        raise UnreadableImageError(
            f"{name} has pixels of the kind {picture.mode!r}, which cannot be made RGB ({error}); "
            "convert it first",
            image=name,
        ) from error
    return np.ascontiguousarray(_turn(pixels, _orientation(picture)))


def _to_rgb(picture: PILImage, name: str) -> PixelArray:
    """(h, w, 3) uint8, a copy, not yet upright."""
    Image = _pillow("PIL.Image")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # Copied as native 32-bit integers; 16-bit PNG and PGM arrive as "I" in older Pillows.
        deep = np.array(picture).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise UnreadableImageError(
                f"{name} has 32-bit pixels from {deep.min()} to {deep.max()}, whose range is not known; "
                "convert it to 8 or 16 bits",
                image=name,
            )
        gray = ((deep * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(gray[:, :, np.newaxis], 3, axis=2)
    if picture.mode == "F":
        raise UnreadableImageError(
            f"{name} has floating-point pixels, whose range is not known; convert it to 8 or 16 bits",
            image=name,
        )
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        clear = picture.convert("LA").convert("RGBA") if picture.mode == "La" else picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, clear).convert("RGB"))
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _orientation(picture: PILImage) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or the block cannot be read."""
    try:
        value = picture.getexif().get(0x0112, 1)
    except Warning:
        raise
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(pixels: PixelArray, orientation: int) -> PixelArray:
    """Turn stored pixels upright, by the table of EXIF 2.32, tag 0x0112."""
    if orientation in (5, 6, 7, 8):  # stored with rows and columns exchanged
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
