"""The layers that all networks are built from: the one seam through which every weight is applied."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models import onednn

NORM_GROUPS = 32


class Linear(nn.Linear):
    """`nn.Linear` whose weight may be packed for the CPU, at its first use, where `sd_core.models.pack` says so."""

    packs = False

    def forward(self, x: Tensor) -> Tensor:  # (..., in_features)
        if not self.packs:
            return F.linear(x, self.weight, self.bias)
        if not self.weight.is_mkldnn:
            self.weight = onednn.packed_linear(self)
        return onednn.linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` whose weight may be packed in the same way, or else become channels_last."""

    packs = False
    channels_last = False

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        if not self.packs:
            if self.channels_last:
                self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)
            return super().forward(x)
        if not self.weight.is_mkldnn:
            self.weight = onednn.packed_convolution(self)
        return onednn.convolution(x, self.weight, self)


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm over 32 groups. The UNet's residual blocks use eps 1e-5, its transformers and the VAE 1e-6."""
    return nn.GroupNorm(NORM_GROUPS, channels, eps=eps)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:  # (B,)
    """Sinusoidal embedding (B, dim), cosines first, in float32 whatever the model's dtype.

    Source: "Attention Is All You Need", section 3.5, as arranged in CompVis' `timestep_embedding`.
    """
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    )
    angles = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
