"""The compact pair: one vision pass gives the decoder its keys and values, and the image its embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tellapart_model.caption_model import CaptionDecoder, CrossBridge
from tellapart_model.config import CompactConfig
from tellapart_model.retrieval_model import ImagePool, TextTower
from tellapart_model.vision import FEATURE_CHANNELS, EfficientNetLite

MAX_LOGIT_SCALE = math.log(100.0)


class CompactPair(nn.Module):
    """Captioner and retriever over one trunk. Parts: trunk, bridge, decoder, pool, text."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = EfficientNetLite(config.trunk, config.image_px)
        self.bridge = CrossBridge(config, FEATURE_CHANNELS)
        self.decoder = CaptionDecoder(config)
        self.pool = ImagePool(config, FEATURE_CHANNELS)
        self.text = TextTower(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature of the contrastive loss, at most 100 (Radford et al. 2021)."""
        return self.log_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> features (b, n, c) float32."""
        features: Tensor = self.trunk(pixels)
        return features

    def cross_kv(self, features: Tensor) -> Tensor:
        """(b, n, c) -> (2l, b, h, n, d), what the decoder attends to."""
        packed: Tensor = self.bridge(features)
        return packed

    def embed_features(self, features: Tensor) -> Tensor:
        """(b, n, c) -> (b, e) unit rows."""
        rows: Tensor = self.pool(features)
        return rows

    def embed_text(self, ids: Tensor) -> Tensor:
        """(b, t) int64 padded with 0 -> (b, e) unit rows."""
        rows: Tensor = self.text(ids)
        return rows

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The vision pass: pixels (b, s, s, 3) uint8 -> cross_kv (2l, b, h, n, d), embedding (b, e)."""
        features = self.features(pixels)
        return self.cross_kv(features), self.embed_features(features)
