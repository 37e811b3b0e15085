"""ESRGAN's generator, under the names of its authors' files."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.layers import Conv2d, name_layers

SLOPE = 0.2
RESIDUAL = 0.2
"""The part of what a block computes that is added to what it received."""

CONVOLUTIONS = 5


@dataclass(frozen=True)
class RRDBNetConfig:
    """The defaults are ESRGAN's x4.

    `shuffle` pixels a side become channels before the first layer; each of `doublings` layers doubles a side after the
    blocks.
    """

    in_channels: int = 3
    out_channels: int = 3
    features: int = 64
    growth: int = 32
    blocks: int = 23
    doublings: int = 2
    shuffle: int = 1


class DenseBlock(nn.Module):
    """Five convolutions, each of which reads the outputs of all before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for index in range(CONVOLUTIONS):
            width = features if index == CONVOLUTIONS - 1 else growth
            self.add_module(f"conv{index + 1}", Conv2d(features + index * growth, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:  # (B, features, H, W)
        known = x
        for index in range(CONVOLUTIONS - 1):
            known = torch.cat([known, F.leaky_relu(self.get_submodule(f"conv{index + 1}")(known), SLOPE)], dim=1)
        out: Tensor = x + RESIDUAL * self.get_submodule(f"conv{CONVOLUTIONS}")(known)
        return out


class RRDB(nn.Module):
    """A residual in residual dense block."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))
        return out


class RRDBNet(nn.Module):
    """Pictures in [0, 1] (B, 3, H, W) -> larger ones (B, 3, H * scale, W * scale), not clamped; H and W may be any.

    Source: Wang et al. 2018, "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", section 3.1; with
    `shuffle`, Wang et al. 2021, "Real-ESRGAN".
    """

    def __init__(self, config: RRDBNetConfig) -> None:
        super().__init__()
        self.config = config
        features = config.features
        self.conv_first = Conv2d(config.in_channels * config.shuffle**2, features, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(features, config.growth) for _ in range(config.blocks)))
        self.conv_body = Conv2d(features, features, 3, padding=1)
        for index in range(config.doublings):
            self.add_module(f"conv_up{index + 1}", Conv2d(features, features, 3, padding=1))
        self.conv_hr = Conv2d(features, features, 3, padding=1)
        self.conv_last = Conv2d(features, config.out_channels, 3, padding=1)
        name_layers(self)

    @property
    def scale(self) -> int:
        return (1 << self.config.doublings) // self.config.shuffle

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    def bytes_for(self, pixels: int) -> int:
        """Memory that a forward holds at its peak for so many pixels, beyond weights."""
        config = self.config
        inside = 3 * (config.features + CONVOLUTIONS * config.growth)
        larger = 4 * config.features << 2 * config.doublings
        return max(inside, larger) * self.conv_first.weight.itemsize * (pixels // config.shuffle**2 + 1)

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        side = self.config.shuffle
        # Sides that are not a multiple of the shuffled blocks are continued, and cut off the result.
        x = F.pad(pixels, (0, -width % side, 0, -height % side), mode="replicate")
        x = self.conv_first(F.pixel_unshuffle(x, side))
        x = x + self.conv_body(self.body(x))
        for index in range(self.config.doublings):
            double = self.get_submodule(f"conv_up{index + 1}")
            x = F.leaky_relu(double(F.interpolate(x, scale_factor=2.0, mode="nearest")), SLOPE, inplace=True)
        out: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE, inplace=True))
        return out[..., : height * self.scale, : width * self.scale]
