"""The compact pair: one vision pass gives the decoder its keys and values, and the image its embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tellapart_model.caption_model import CaptionDecoder, CrossBridge
from tellapart_model.captioner import CaptionNetwork
from tellapart_model.config import CompactConfig
from tellapart_model.retrieval_model import ImagePool, TextTower
from tellapart_model.vision import FEATURE_CHANNELS, EfficientNetLite

MAX_LOGIT_SCALE = math.log(100.0)


class CompactPair(CaptionNetwork):
    """Captioner and retriever over one trunk. Parts: trunk, bridge, decoder, pool, text."""

    architecture = "compact"

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

    def condition(self, features: Tensor) -> Tensor:
        """See `CaptionNetwork`: `cross_kv`."""
        return self.cross_kv(features)

    def logits(self, ids: Tensor, condition: Tensor) -> Tensor:
        """See `CaptionNetwork`."""
        logits: Tensor = self.decoder(ids, condition)
        return logits

    def walk(self, condition: Tensor, longest: int) -> CompactWalk:
        """See `CaptionNetwork`."""
        return CompactWalk(self.decoder, condition, longest)

    def freeze_before(self, block: int, *, depthwise: bool) -> None:
        """See `EfficientNetLite.freeze_before`."""
        self.trunk.freeze_before(block, depthwise=depthwise)

    def freeze_retriever(self) -> None:
        """Keep pooling, text tower and temperature as they are."""
        for part in (self.pool, self.text):
            part.requires_grad_(False)
        self.log_scale.requires_grad_(False)

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


class CompactWalk:
    """Captions of a batch under way, over one buffer of keys and values; see `captioner.Walk`."""

    def __init__(self, decoder: CaptionDecoder, cross_kv: Tensor, longest: int) -> None:
        """Take cross_kv (2l, r, h, n, d)."""
        config, rows = decoder.config, cross_kv.shape[1]
        self._decoder, self._cross_kv, self._past = decoder, cross_kv, 0
        self._cache = cross_kv.new_zeros(2 * config.layers, rows, config.heads, longest, config.head_width)

    def step(self, ids: Tensor) -> Tensor:
        """See `Walk`."""
        logits = self._decoder.step_into(ids, self._past, self._cache, self._cross_kv)
        self._past += 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """See `Walk`."""
        self._cache, self._cross_kv = self._cache[:, rows], self._cross_kv[:, rows]
