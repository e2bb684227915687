"""Sizes of a ClipCap, and the pixels it wants."""

from __future__ import annotations

import dataclasses
import difflib
import json

from tellapart.errors import ConfigError
from tellapart.manifest import Preprocessing

ARCHITECTURE = "clipcap"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of each channel, on the scale 0 to 1, as CLIP's authors give them."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ClipCapConfig:
    """Sizes of the three parts; the defaults are CLIP ViT-B/32 and GPT-2 small (243.8 M parameters)."""

    architecture: str = ARCHITECTURE
    image_px: int = 224
    """Side of the square input, pixels."""
    patch_px: int = 32
    """Side of one ViT patch, pixels."""
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    embedding_width: int = 512
    """Width of CLIP's projected image embedding."""
    prefix_length: int = 10
    """Vectors that stand for the image in front of the caption."""
    vocabulary_size: int = 50257
    language_width: int = 768
    language_layers: int = 12
    language_heads: int = 12
    max_positions: int = 1024
    """Positions GPT-2 knows."""
    max_length: int = 50
    """Longest sequence, prefix included: at most ``max_length - prefix_length`` new tokens."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        if self.architecture != ARCHITECTURE:
            raise ConfigError(f"architecture: expected '{ARCHITECTURE}', got '{self.architecture}'")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "architecture" and (type(value) is not int or value < 1):
                raise ConfigError(f"{field.name}: expected a whole number from 1 up, got {value!r}")
        if self.image_px % self.patch_px:
            raise ConfigError(f"image_px: {self.image_px} is not a multiple of patch_px {self.patch_px}")
        if not self.prefix_length < self.max_length <= self.max_positions:
            raise ConfigError(
                f"max_length: expected above prefix_length {self.prefix_length} and at most max_positions "
                f"{self.max_positions}, got {self.max_length}"
            )

    @classmethod
    def toy(cls) -> ClipCapConfig:
        """A pair of towers small enough for a unit test."""
        return cls(
            image_px=32, patch_px=16, vision_width=16, vision_layers=2, vision_heads=2, embedding_width=8,
            prefix_length=3, vocabulary_size=40, language_width=16, language_layers=2, language_heads=2,
            max_positions=32, max_length=15,
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> ClipCapConfig:
        """Read a configuration.

        Raises:
            ConfigError: not a JSON object, an unknown key (the nearest known one is named), or a bad value.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"ClipCap configuration is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ConfigError("ClipCap configuration: expected a JSON object")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                nearest = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean '{nearest[0]}'?" if nearest else f"; known keys: {', '.join(known)}"
                raise ConfigError(f"ClipCap configuration: unknown key '{key}'{hint}")
        return cls(**fields)

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def preprocessing(self) -> Preprocessing:
        """How a photo becomes pixels: short side fitted, centre cut, CLIP's mean and deviation."""
        (r, g, b), (dr, dg, db) = CLIP_MEAN, CLIP_STD
        return Preprocessing(
            image_px=self.image_px, resize="crop", filter="bicubic",
            mean=(255.0 * r, 255.0 * g, 255.0 * b), std=(255.0 * dr, 255.0 * dg, 255.0 * db),
        )  # fmt: skip
