"""The parts of a UNet: residual blocks, the layers between its levels, and the stages that these are ordered in."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.attention import SpatialTransformer
from sd_core.models.given import Given
from sd_core.models.layers import Conv2d, Linear, group_norm


class ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(in_channels), nn.SiLU(inplace=True), Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(time_dim, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(inplace=True),
            nn.Identity(),
            Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, given: Given) -> Tensor:  # (B, C, H, W), (B, time_dim)
        silu, linear = self.emb_layers
        shift = linear(silu(emb), given=given)[:, :, None, None]
        norm, silu, conv = self.in_layers
        h = conv(silu(norm(x, given)), shift, given)
        norm, silu, _, conv = self.out_layers
        skip = self.skip_connection
        out: Tensor = conv(silu(norm(h, given)), skip(x, given=given) if isinstance(skip, Conv2d) else x, given)
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        out: Tensor = self.op(x, given=given)
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size, given: Given) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"), given=given)
        return out


class Stage(nn.ModuleList):
    """One entry of `input_blocks`, `middle_block` or `output_blocks`: its layers, each with the inputs it takes."""

    @property
    def expands(self) -> bool:
        """Whether it receives one feature map per input and returns one per row."""
        return any(isinstance(layer, SpatialTransformer) and layer.expands for layer in self)

    def forward(self, x: Tensor, emb: Tensor, size: torch.Size, given: Given) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb, given)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, given)
                if layer.expands:
                    emb, given = given.per_row(emb), given.expanded
            elif isinstance(layer, Upsample):
                x = layer(x, size, given)
            elif isinstance(layer, Conv2d):
                x = layer(x, given=given)
            else:
                x = layer(x, given)
        return x
