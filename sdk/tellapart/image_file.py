"""Image files through Pillow: the header first, the pixels when they are wanted.

Pillow's rough edge: it reads some forty formats, one of which starts another program, and it loads the
plugins of all to find the right one. So the first bytes decide here which of a few picture formats to
load. Used by `image` alone, which holds the limit and the public face; Pillow is imported on first use.
"""

from __future__ import annotations

import os
import stat
import sys
from importlib import import_module
from typing import IO, TYPE_CHECKING

import numpy as np

from tellapart.errors import (
    ImageError,
    ImageTooLargeError,
    MissingExtraError,
    TruncatedImageError,
    UnreadableImageError,
)
from tellapart.types import PixelArray

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image as PILImage

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


def open_file(path: str) -> IO[bytes]:
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


def open_header(stream: IO[bytes], name: str) -> PILImage:
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
    except Exception as error:  # plugins raise what they like: SyntaxError, struct.error, KeyError
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


def to_pixels(picture: PILImage, name: str) -> PixelArray:
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
