"""How a loaded network is laid out for a device: the only place that changes the form of weights after loading."""

import torch
from torch import nn

from sd_core.models.layers import Conv2d, Linear

LEAST_WIDTH = 256
"""Inputs from which a linear layer is faster as a convolution; below, preparing its weights costs more than that."""


def pack(module: nn.Module, device: torch.device, least_width: int = LEAST_WIDTH) -> None:
    """Lays out a network's weights for `device`, in place, its results the same up to rounding.

    On a CPU convolutions are channels_last, and linears of at least `least_width` inputs run as 1x1
    convolutions: the library behind convolutions is the faster one at matrix products of those sizes.
    """
    if device.type != "cpu":
        return
    for layer in module.modules():
        if isinstance(layer, Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(layer, Linear):
            layer.as_convolution = layer.in_features >= least_width
