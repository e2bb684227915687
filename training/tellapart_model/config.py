"""Architectures as readable data: a dataclass, a JSON file, and nothing hidden."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart.errors import CheckpointError, ConfigError

TRUNKS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
PAD_ID, UNKNOWN_ID, START_ID, END_ID = 0, 1, 2, 3
SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True)
class CompactConfig:
    """The compact pair: one vision trunk, a caption decoder and a text tower over one vocabulary."""

    family: str = "compact"
    """Architecture family; the exporter looks it up."""
    trunk: str = "efficientnet-lite0"
    """Vision trunk, one of `TRUNKS`."""
    image_px: int = 224
    """Side of the square input in pixels."""
    vocabulary_size: int = 6000
    """Pieces in `vocab.txt`, special pieces included."""
    width: int = 256
    """Decoder width."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 8
    """Attention heads of decoder and image pooling."""
    feedforward: int = 1024
    """Decoder feed-forward width."""
    max_length: int = 48
    """Longest token sequence, start and end included, of decoder and text tower."""
    dropout: float = 0.1
    """Dropout probability while training, in [0, 1)."""
    embedding: int = 256
    """Width of the shared unit embedding of images and texts."""
    text_width: int = 384
    """Text tower width (384: all-MiniLM-L6-v2)."""
    text_layers: int = 4
    """Text tower layers kept."""
    text_heads: int = 12
    """Text tower attention heads."""
    text_feedforward: int = 1536
    """Text tower feed-forward width."""

    def __post_init__(self) -> None:
        if self.family != "compact":
            raise CheckpointError(
                f"family is {self.family!r}, expected 'compact': this is another architecture"
            )
        if self.trunk not in TRUNKS:
            raise ConfigError(f"trunk is {self.trunk!r}; choose one of {', '.join(TRUNKS)}")
        for name in ("width", "text_width"):
            heads = self.heads if name == "width" else self.text_heads
            if getattr(self, name) % heads:
                raise ConfigError(f"{name} {getattr(self, name)} is not a multiple of its {heads} heads")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{field.name} is {value}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.image_px % 32:
            raise ConfigError(f"image_px is {self.image_px}; it must be a multiple of 32, the trunk's stride")

    @property
    def head_width(self) -> int:
        """Width of one decoder attention head."""
        return self.width // self.heads

    @property
    def image_tokens(self) -> int:
        """Number of positions of the trunk's last feature map."""
        return (self.image_px // 32) ** 2

    @classmethod
    def toy(cls, vocabulary_size: int = 64) -> CompactConfig:
        """A configuration small enough for tests: the Lite0 trunk at 32 px and tiny heads."""
        return cls(
            image_px=32,
            vocabulary_size=vocabulary_size,
            width=16,
            layers=2,
            heads=2,
            feedforward=32,
            max_length=16,
            dropout=0.0,
            embedding=16,
            text_width=24,
            text_layers=1,
            text_heads=2,
            text_feedforward=48,
        )


def to_json(config: CompactConfig) -> str:
    """The configuration as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_mapping(data: dict[str, Any], *, origin: str = "config") -> CompactConfig:
    """Build a configuration from parsed JSON.

    Raises:
        ConfigError: an unknown key (the nearest known one is named) or a value of the wrong type.
        CheckpointError: another architecture family.
    """
    family = data.get("family", "compact")
    if family != "compact":
        raise CheckpointError(
            f"{origin}: family {family!r} is not the compact pair; expected family 'compact'"
        )
    fields = {field.name: field for field in dataclasses.fields(CompactConfig)}
    for key, value in data.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{origin}: unknown key {key!r}{hint}")
        expected = type(fields[key].default)
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise ConfigError(f"{origin}: {key} is {value!r}, expected {expected.__name__}")
    return CompactConfig(**data)


def load_config(path: str | Path) -> CompactConfig:
    """Read a configuration from a JSON file.

    Raises:
        CheckpointError: no such file, not JSON, or another architecture.
        ConfigError: unknown key or wrong type.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"cannot read the architecture file {path}: {error.strerror or error}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}, expected a JSON object")
    return from_mapping(data, origin=str(path))
