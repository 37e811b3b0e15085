"""How a network is laid out for a device: the only place that decides the form of its weights."""

from collections.abc import Iterator

import torch
from torch import nn

from sd_core.models import onednn, winograd
from sd_core.models.layers import Conv2d, GatedLinear, Linear

Layer = Linear | GatedLinear | Conv2d


def pack(network: nn.Module, device: torch.device, dtype: torch.dtype) -> frozenset[str]:
    """Lays out a network, loaded or not yet, that computes in `dtype` on `device`; its results stay the same up to
    rounding. Returns the names of the weights that need not be in `dtype` themselves.

    On a CPU each layer packs its weight at its first use, where oneDNN multiplies packed ones of that dtype, and keeps
    no other copy; else a convolution's becomes channels_last. A CPU that cannot multiply in a narrow dtype emulates it
    far slower: there the weights stay narrow, and each is widened while it is used.
    """
    if device.type != "cpu":
        return frozenset()
    packs = onednn.packs(dtype)
    for _, layer in _layers(network):
        layer.packs = dtype if packs else None
        layer.widens = not packs and dtype.itemsize < torch.float32.itemsize
        if isinstance(layer, Conv2d):
            layer.channels_last = not packs
    return frozenset(f"{name}.weight" for name, _ in _layers(network)) if packs else frozenset()


def bytes_to_pack(network: nn.Module) -> int:
    """What its weights will take that wait for their first use."""
    waiting = ((layer, layer.packs) for _, layer in _layers(network) if not layer.weight.is_mkldnn)
    return sum(_packed_bytes(layer, dtype) for layer, dtype in waiting if dtype is not None)


def _packed_bytes(layer: Layer, dtype: torch.dtype) -> int:
    growth = winograd.GROWTH if isinstance(layer, Conv2d) and winograd.suits(layer) else 1
    return int(layer.weight.numel() * dtype.itemsize * growth)


def _layers(network: nn.Module) -> Iterator[tuple[str, Layer]]:
    for name, module in network.named_modules():
        if isinstance(module, Layer):
            yield name, module
