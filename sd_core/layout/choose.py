"""Which variant each layer of a network becomes on a device."""

from collections.abc import Iterator

import torch
from torch import nn

from sd_core.layout import onednn, winograd
from sd_core.layout.packed import PackedConv2d, PackedGatedLinear, PackedLinear, PointwiseConv2d, WinogradConv2d
from sd_core.layout.plain import ChannelsLastConv2d, WideningGatedLinear, WideningLinear
from sd_core.layout.variant import Conv2dVariant, GatedLinearVariant, LinearVariant, Variant
from sd_core.models.layers import Conv2d, GatedLinear, Linear


def lay_out(network: nn.Module, device: torch.device, dtype: torch.dtype) -> frozenset[str]:
    """Replace the layers of a network, loaded or not, by their variants for computing in `dtype` on `device`.

    Results stay equal up to rounding; names and parameters stay the same. Return the names of the weights that their
    layers cast at first use, so that they need not be loaded in `dtype`. A network that is already laid out, or on
    another device than a CPU, is not changed.
    """
    if device.type != "cpu":
        return frozenset()
    for name, layer in list(network.named_modules()):
        variant = variant_of(layer, dtype)
        if variant is not None:
            network.set_submodule(name, variant)
    return frozenset(f"{name}.weight" for name, variant in _variants(network) if variant.form_growth)


def variant_of(layer: nn.Module, dtype: torch.dtype) -> LinearVariant | GatedLinearVariant | Conv2dVariant | None:
    """The variant that replaces a plain layer on this CPU; None if none does, or if the layer is not a plain one."""
    packs = onednn.packs(dtype)
    widens = not packs and dtype.itemsize < torch.float32.itemsize
    if type(layer) is Linear and (packs or widens):
        return (PackedLinear if packs else WideningLinear).of(layer, dtype)
    if type(layer) is GatedLinear and (packs or widens):
        return (PackedGatedLinear if packs else WideningGatedLinear).of(layer, dtype)
    if type(layer) is Conv2d:
        return (packed_convolution(layer) if packs else ChannelsLastConv2d).of(layer, dtype)
    return None


def packed_convolution(layer: Conv2d) -> type[Conv2dVariant]:
    """The fastest variant for a convolution of this geometry and width."""
    if PointwiseConv2d.suits(layer):
        return PointwiseConv2d
    return WinogradConv2d if winograd.suits(layer) else PackedConv2d


def bytes_to_pack(network: nn.Module) -> int:
    """Bytes that the weights of a network will additionally take at their first use."""
    return sum(variant.bytes_to_pack() for _, variant in _variants(network))


def bytes_in_use(network: nn.Module, dtype: torch.dtype) -> int:
    """Bytes that the weights of a network, loaded or not, take once each of its layers was used in `dtype`."""
    numbers: float = sum(weight.numel() for weight in network.parameters())
    for _, variant in _variants(network):
        if variant.form_growth:  # the form takes the place of a weight that is mapped from the file
            numbers += variant.weight.numel() * (variant.form_growth - 1)
    return int(numbers * dtype.itemsize)


def _variants(network: nn.Module) -> Iterator[tuple[str, Variant]]:
    for name, module in network.named_modules():
        if isinstance(module, Variant):
            yield name, module
