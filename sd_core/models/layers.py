"""The layers that all networks are built from: every weight of a network is applied by one of them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.given import NOTHING, Given

NORM_GROUPS = 32

NO_PADDING = (0, 0)


class Named:
    """A module that looks up its part of what a forward is given by `name`, its name in the network."""

    name = ""


def name_layers(network: nn.Module) -> None:
    """Give every `Named` module of a network its name, as `named_modules` spells it."""
    for name, module in network.named_modules():
        if isinstance(module, Named):
            module.name = name


def circular_padding(network: nn.Module) -> dict[str, str]:
    """The padding that makes what a network generates seamless, by the name of each convolution."""
    return {module.name: "circular" for module in network.modules() if isinstance(module, Conv2d)}


class Linear(Named, nn.Linear):
    """`nn.Linear` that takes an adapter and a sum."""

    def forward(self, x: Tensor, add: Tensor | None = None, given: Given = NOTHING) -> Tensor:  # (..., in_features)
        """The adapted layer plus `add`, which has the output's shape (..., out_features)."""
        out = self.product(x, add)
        adapter = given.adapters.get(self.name)
        return out if adapter is None else adapter(x, out, NO_PADDING)

    def product(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """The layer without adapters, plus `add`: a new tensor. Variants override this."""
        out = F.linear(x, self.weight, self.bias)
        return out if add is None else out + add


class GatedLinear(Named, nn.Linear):
    """Half of a linear layer times the exact GELU of its other half: `weight` (2 * hidden, dim), values first."""

    def __init__(self, dim: int, hidden: int, device: torch.device | str | None = None) -> None:
        super().__init__(dim, hidden * 2, device=device)

    def forward(self, x: Tensor, given: Given = NOTHING) -> Tensor:  # (..., dim) -> (..., hidden)
        """The gated layer. An adapter gets values and gates (..., hidden) as they are before the gate."""
        adapter = given.adapters.get(self.name)
        if adapter is None:
            return self.gated(x)
        values, gates = self.halves(x)
        values = adapter(x, values, NO_PADDING, gates)
        if torch.is_grad_enabled() or not values.is_contiguous():
            return apply_gate(values, gates)
        # The halves are large and new: two more such tensors would cost as much as the adapter.
        return values.mul_(torch.ops.aten.gelu_(gates))

    def gated(self, x: Tensor) -> Tensor:
        """The layer without adapters. Variants that compute it in one pass override this."""
        return apply_gate(*self.halves(x))

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gates (..., hidden), before the gate. Variants override this."""
        return in_halves(F.linear(x, self.weight, self.bias))


class Conv2d(Named, nn.Conv2d):
    """`nn.Conv2d` that takes an adapter, a sum and circular padding."""

    def forward(self, x: Tensor, add: Tensor | None = None, given: Given = NOTHING) -> Tensor:  # (B, C, H, W)
        """The adapted layer plus `add`, of shape (B, out_channels, H', W') or (B, out_channels, 1, 1)."""
        padding = pads(self)
        if given.padding.get(self.name) == "circular" and any(padding):
            x, padding = wrapped(x, padding), NO_PADDING
        out = self.convolution(x, padding, add)
        adapter = given.adapters.get(self.name)
        return out if adapter is None else adapter(x, out, padding)

    def convolution(self, x: Tensor, padding: tuple[int, int], add: Tensor | None = None) -> Tensor:
        """The layer without adapters, with `padding` rows and columns of zeros, plus `add`: a new tensor.

        Variants override this.
        """
        out = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return out if add is None else out + add


class GroupNorm(Named, nn.GroupNorm):
    """`nn.GroupNorm` that takes an adapter, which gets what is normalized, before `weight` and `bias`."""

    def forward(self, x: Tensor, given: Given = NOTHING) -> Tensor:  # (B, C, H, W)
        out = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        adapter = given.adapters.get(self.name)
        if adapter is not None:
            out = adapter(F.group_norm(x, self.num_groups, eps=self.eps), out, NO_PADDING)
        return out


class LayerNorm(Named, nn.LayerNorm):
    """`nn.LayerNorm` that takes an adapter, which gets what is normalized, before `weight` and `bias`."""

    def forward(self, x: Tensor, given: Given = NOTHING) -> Tensor:  # (..., width)
        out = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        adapter = given.adapters.get(self.name)
        return (
            out if adapter is None else adapter(F.layer_norm(x, self.normalized_shape, eps=self.eps), out, NO_PADDING)
        )


def in_halves(projection: Tensor) -> tuple[Tensor, Tensor]:  # (..., 2 * hidden)
    """Values and gates (..., hidden), to which autograd lets an adapter add in place, unlike what `chunk` returns."""
    hidden = projection.shape[-1] // 2
    return projection[..., :hidden], projection[..., hidden:]


def apply_gate(values: Tensor, gates: Tensor) -> Tensor:  # (..., hidden) each
    """Values times the exact GELU of the gates (Shazeer 2020, "GLU Variants Improve Transformer")."""
    return values * F.gelu(gates)


def pads(layer: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns that a convolution adds on each side."""
    if isinstance(layer.padding, str):
        raise ValueError(f"padding {layer.padding!r} is not a number of rows and columns")
    rows, columns = layer.padding
    return rows, columns


def wrapped(x: Tensor, padding: Sequence[int]) -> Tensor:  # (B, C, H, W)
    """x continued periodically by `padding` rows and columns on each side: circular padding for seamless tiles."""
    rows, columns = padding
    return F.pad(x, (columns, columns, rows, rows), mode="circular")


def running_dtype(network: nn.Module) -> torch.dtype:
    """The dtype that a network computes in: that of its norms and biases. Its weights may be stored in another."""
    return next(parameter.dtype for parameter in network.parameters() if parameter.dim() == 1)


def group_norm(channels: int, eps: float = 1e-5) -> GroupNorm:
    """GroupNorm over 32 groups. The UNet's residual blocks use eps 1e-5, its transformers and the VAE 1e-6."""
    return GroupNorm(NORM_GROUPS, channels, eps=eps)


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
