"""Layers for a CPU on which oneDNN does not multiply packed weights of the compute dtype.

Such a CPU emulates products of a narrow dtype, which is far slower than float32. Weights stay narrow, and each is
widened while it is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.layout.variant import Conv2dVariant, GatedLinearVariant, LinearVariant, Once
from sd_core.models.layers import GatedLinear, Linear, in_halves


class WideningLinear(LinearVariant):
    """Computes in float32 with a weight in a narrower dtype, in which input and output are too."""

    form_growth = 0.0

    def product(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        out = widened_product(self, x)
        return out if add is None else out + add


class WideningGatedLinear(GatedLinearVariant):
    form_growth = 0.0

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return in_halves(widened_product(self, x))


class ChannelsLastConv2d(Conv2dVariant):
    """Keeps its kernel channels_last, as most CPU libraries read it; a narrow one computes in float32."""

    form: Once[Tensor]

    def convolution(self, x: Tensor, padding: tuple[int, int], add: Tensor | None = None) -> Tensor:
        weight = self.form.get(self.weight, lambda: self.dense().contiguous(memory_format=torch.channels_last))
        bias = None if self.bias is None else self.bias.float()
        out = F.conv2d(x.float(), weight.float(), bias, self.stride, padding, self.dilation, self.groups).to(x.dtype)
        return out if add is None else out + add


def widened_product(layer: Linear | GatedLinear, x: Tensor) -> Tensor:
    """The linear layer applied to x, computed in float32 and returned in x's dtype."""
    bias = None if layer.bias is None else layer.bias.float()
    return F.linear(x.float(), layer.weight.float(), bias).to(x.dtype)
