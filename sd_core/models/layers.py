"""The layers that all networks are built from: the one seam through which every weight is applied."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 32


class Linear(nn.Linear):
    """`nn.Linear` that can run as a 1x1 convolution, which some devices multiply faster.

    `sd_core.models.pack` alone decides `as_convolution`; the result is the same up to rounding.
    """

    as_convolution = False

    def forward(self, x: Tensor) -> Tensor:  # (..., in_features)
        if not self.as_convolution or x.dim() != 3:
            return F.linear(x, self.weight, self.bias)
        # (B, T, C) is a (B, C, T, 1) picture in channels_last: neither side of the product is copied.
        picture = x.transpose(1, 2).unsqueeze(-1)
        return F.conv2d(picture, self.weight[:, :, None, None], self.bias).squeeze(-1).transpose(1, 2)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` under the project's own name, so that adapters find every convolution through one type."""


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
