"""How a loaded network is laid out for a device: the only place that decides the form of weights after loading."""

import torch
from torch import nn

from sd_core.models import onednn
from sd_core.models.layers import Conv2d, GatedLinear, Linear


def pack(module: nn.Module, device: torch.device) -> None:
    """Lays out a network's weights for `device`, in place, its results the same up to rounding.

    On a CPU each layer does so at its first use and keeps no other copy: it packs its weight where oneDNN multiplies
    packed ones of that dtype, else a convolution's becomes channels_last. A CPU that cannot multiply in a narrow dtype
    emulates it far slower: there the weights stay narrow, and each is widened while it is used.
    """
    if device.type != "cpu":
        return
    for layer in module.modules():
        if isinstance(layer, Conv2d | Linear | GatedLinear):
            layer.packs = onednn.packs(layer.weight.dtype)
            layer.widens = not layer.packs and layer.weight.dtype.itemsize < torch.float32.itemsize
        if isinstance(layer, Conv2d):
            layer.channels_last = not layer.packs
