"""How a loaded network is laid out for a device: the only place that changes the form of weights after loading."""

import torch
from torch import nn

from sd_core.models.layers import Conv2d, Linear


def pack(module: nn.Module, device: torch.device) -> None:
    """Lays out a network's weights for `device`, in place, its results the same up to rounding.

    On a CPU convolutions are channels_last, and linears run as 1x1 convolutions: the library behind convolutions is
    the faster one at matrix products of these sizes.
    """
    if device.type != "cpu":
        return
    for layer in module.modules():
        if isinstance(layer, Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(layer, Linear):
            layer.as_convolution = True
