"""T2I-Adapter: a small network whose features of a hint are added on a UNet's way down."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.given import NOTHING, Given
from sd_core.models.layers import Conv2d, circular_padding, name_layers, running_dtype

DOWNSCALE = 8
"""Pixels of a side of a hint that become channels."""

LIGHT_PART = 4
"""A light adapter's blocks have this part of a level's channels."""


@dataclass(frozen=True)
class T2IAdapterConfig:
    """The defaults are those of v1.5's full adapters: one width a level, and how many blocks each level has.

    `kernel` is that of the second convolution of a block. `is_light`: levels are narrowed, and blocks have 3x3
    convolutions alone.
    """

    hint_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks: int = 2
    kernel: int = 1
    is_light: bool = False


class Block(nn.Module):
    """Two convolutions, whose result is added to what they receive; `in_conv` changes the width before."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.in_conv = Conv2d(in_channels, channels, kernel, padding=kernel // 2) if in_channels != channels else None
        self.block1 = Conv2d(channels, channels, 3, padding=1)
        self.block2 = Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, given: Given) -> Tensor:  # (B, in_channels, H, W)
        if self.in_conv is not None:
            x = self.in_conv(x, given=given)
        out: Tensor = self.block2(F.relu(self.block1(x, given=given)), x, given)
        return out


class LightLevel(nn.Module):
    """Blocks of fewer channels than the level has."""

    def __init__(self, in_channels: int, channels: int, blocks: int) -> None:
        super().__init__()
        narrow = channels // LIGHT_PART
        self.in_conv = Conv2d(in_channels, narrow, 1)
        self.body = nn.ModuleList(Block(narrow, narrow, 3) for _ in range(blocks))
        self.out_conv = Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor, given: Given) -> Tensor:  # (B, in_channels, H, W)
        x = self.in_conv(x, given=given)
        for block in self.body:
            x = block(x, given)
        out: Tensor = self.out_conv(x, given=given)
        return out


class T2IAdapter(nn.Module):
    """Hints (B, hint_channels, 8 * H, 8 * W) in [0, 1] -> what is added to each level's last output, (B, C, h, w).

    `key` identifies the weights: equal keys mean equal networks.

    Source: Mou et al. 2023, "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image
    Diffusion Models"; names are those of its authors' files.
    """

    nbytes = 0
    """Memory that its weights take in use; whoever loads it says how much."""

    def __init__(self, config: T2IAdapterConfig, key: str = "") -> None:
        super().__init__()
        self.config, self.key = config, key
        self.hint_channels = config.hint_channels
        taken, widths = config.hint_channels * DOWNSCALE**2, config.channels
        if config.is_light:
            levels = zip((taken, *widths), widths, strict=False)
            self.body = nn.ModuleList(LightLevel(before, width, config.blocks) for before, width in levels)
        else:
            self.conv_in = Conv2d(taken, widths[0], 3, padding=1)
            before = (widths[0], *widths)
            self.body = nn.ModuleList(
                Block(before[level] if index == 0 else width, width, config.kernel)
                for level, width in enumerate(widths)
                for index in range(config.blocks)
            )
        name_layers(self)
        self.circular = circular_padding(self)

    @property
    def dtype(self) -> torch.dtype:
        return running_dtype(self)

    def forward(self, hint: Tensor, given: Given = NOTHING) -> tuple[Tensor, ...]:
        x = F.pixel_unshuffle(hint.to(self.dtype), DOWNSCALE)
        if not self.config.is_light:
            x = self.conv_in(x, given=given)
        each = 1 if self.config.is_light else self.config.blocks
        features: list[Tensor] = []
        for level in range(len(self.config.channels)):
            if level > 0:
                # Odd sides are rounded up, as the UNet does it.
                x = F.avg_pool2d(x, 2, ceil_mode=True)
            for block in self.body[each * level : each * (level + 1)]:
                x = block(x, given)
            features.append(x)
        return tuple(features)

    def hint_bytes(self, pixels: int, /) -> int:
        """Memory that embedding hints of so many pixels holds at its peak, beyond weights."""
        numbers = self.hint_channels + 4 * self.config.channels[0] / DOWNSCALE**2
        return int(numbers * pixels) * self.dtype.itemsize
