"""The layers that all networks are built from: the one seam through which every weight is applied."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models import onednn, winograd

NORM_GROUPS = 32


def operands(layer: "Linear | GatedLinear | Conv2d", x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias as a layer that is not packed computes with them: in float32 where it widens."""
    if not layer.widens:
        return x, layer.weight, layer.bias
    return x.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float()


class Linear(nn.Linear):
    """`nn.Linear` as `sd_core.models.pack` lays it out for a CPU: its weight packed, at its first use, or widened.

    `packs` is the dtype in which it is packed, whatever it is stored in; None where it is not packed.
    """

    packs: torch.dtype | None = None
    widens = False

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:  # (..., in_features)
        """The layer, plus `add` (..., out_features), in one pass where packed."""
        if self.packs is None:
            out = F.linear(*operands(self, x)).to(x.dtype)
            return out if add is None else out + add
        if not self.weight.is_mkldnn:
            self.weight = onednn.packed_matrix(self.weight.to(self.packs))
        return onednn.linear(x, self.weight, self.bias, add)


class GatedLinear(nn.Linear):
    """Half of a linear layer times the exact GELU of its other half: `weight` (2 * hidden, dim), first the values."""

    packs: torch.dtype | None = None
    widens = False

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(dim, hidden * 2)
        self._packed_gate: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:  # (..., dim)
        if self.packs is None:
            value, gate = F.linear(*operands(self, x)).to(x.dtype).chunk(2, dim=-1)
            return value * F.gelu(gate)
        if self._packed_gate is None:
            value, gate = self.weight.to(self.packs).chunk(2)
            self._packed_gate, self.weight = onednn.packed_matrix(gate).data, onednn.packed_matrix(value)
        return onednn.gated_linear(x, self.weight, self._packed_gate, self.bias)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` laid out in the same way; where its weight is not packed it may become channels_last."""

    packs: torch.dtype | None = None
    widens = False
    channels_last = False
    _entries: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:  # (B, C, H, W)
        """The layer, plus `add` (B, out_channels, H, W) or (B, out_channels, 1, 1), in one pass where packed."""
        if self.packs is None:
            if self.channels_last:
                self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)
            out: Tensor = self._conv_forward(*operands(self, x)).to(x.dtype)
            return out if add is None else out + add
        if not self.weight.is_mkldnn:
            self._pack(self.packs)
        if self._entries:
            return winograd.convolution(x, (self.weight, *self._entries), self.bias, add)
        return onednn.convolution(x, self.weight, self, add)

    def _pack(self, dtype: torch.dtype) -> None:
        if winograd.suits(self):
            self.weight, *entries = winograd.packed(self.weight, dtype)
            self._entries = tuple(entry.data for entry in entries)
        else:
            self.weight = onednn.packed_convolution(self, dtype)


def running_dtype(network: nn.Module) -> torch.dtype:
    """What a network computes in: the dtype of its norms and biases. A weight may be stored in another till packed."""
    return next(parameter.dtype for parameter in network.parameters() if parameter.dim() == 1)


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
