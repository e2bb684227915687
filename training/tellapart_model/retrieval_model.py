"""The retriever's two sides: attention pooling of image features, and a text tower cut from MiniLM.

The tower has BERT's shape (Devlin et al. 2019, post-norm), so that layers and word pieces of
all-MiniLM-L6-v2 load as they are; mean pooling as that model was trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tellapart_model.caption_model import attend, merge_heads, split_heads
from tellapart_model.config import PAD_ID, CompactConfig


class ImagePool(nn.Module):
    """Attention pooling: learnt queries look at the feature map; unit rows come out."""

    def __init__(self, config: CompactConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.heads
        width = config.text_width if config.text_width % config.heads == 0 else config.width
        self.reduce = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.mean = nn.Linear(channels, config.embedding)
        self.out = nn.Linear(width, config.embedding)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(b, n, c) -> (b, e) unit rows."""
        x = self.norm(self.reduce(features))
        query = split_heads(self.query.expand(x.shape[0], -1, -1), self.heads)
        pooled = attend(query, split_heads(self.keys(x), self.heads), split_heads(self.values(x), self.heads))
        joined = self.out(self.dropout(merge_heads(pooled)[:, 0])) + self.mean(self.dropout(features.mean(1)))
        return F.normalize(joined, dim=-1)


class TextLayer(nn.Module):
    """One post-norm BERT layer."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        width = config.text_width
        self.heads = config.text_heads
        self.query = nn.Linear(width, width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.feed_in = nn.Linear(width, config.text_feedforward)
        self.feed_out = nn.Linear(config.text_feedforward, width)
        self.feed_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(b, t, w) with an additive attention bias (b, 1, 1, t): 0, or very negative at padding."""
        query, keys, values = (
            split_heads(part(x), self.heads) for part in (self.query, self.keys, self.values)
        )
        scores = torch.matmul(query * query.shape[-1] ** -0.5, keys.transpose(-1, -2)) + bias
        attended = merge_heads(torch.matmul(scores.softmax(-1), values))
        x = self.attention_norm(x + self.dropout(self.attention_out(attended)))
        fed: Tensor = self.feed_norm(x + self.dropout(self.feed_out(F.gelu(self.feed_in(x)))))
        return fed


class TextTower(nn.Module):
    """Token ids -> unit rows."""

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        width = config.text_width
        self.embedding = nn.Embedding(config.vocabulary_size, width, padding_idx=PAD_ID)
        self.positions = nn.Embedding(config.max_length, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.text_layers))
        self.out = nn.Linear(width, config.embedding)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """(b, t) int64 padded with `PAD_ID` -> (b, e) unit rows."""
        real = (ids != PAD_ID).to(self.positions.weight.dtype)  # (b, t), 1 = a real token
        bias = (1.0 - real)[:, None, None, :] * -1e4
        x = self.dropout(self.norm(self.embedding(ids) + self.positions.weight[: ids.shape[1]]))
        for layer in self.layers:
            x = layer(x, bias)
        pooled = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return F.normalize(self.out(pooled), dim=-1)
