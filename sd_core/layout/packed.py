"""Layers that multiply with weights in oneDNN's own layouts."""

import torch
from torch import Tensor

from sd_core.layout import onednn, winograd
from sd_core.layout.onednn import Geometry, Kernels
from sd_core.layout.variant import Conv2dVariant, GatedLinearVariant, LinearVariant, Once
from sd_core.models.layers import Conv2d, pads


class PackedLinear(LinearVariant):
    form: Once[Tensor]

    def product(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        packed = self.form.get(self.weight, lambda: onednn.packed_matrix(self.dense()))
        return onednn.linear(x, packed, self.bias, add)


class PackedGatedLinear(GatedLinearVariant):
    """Values and gates are packed separately, so that the product with the values also multiplies by the gates."""

    form: Once[tuple[Tensor, Tensor]]

    def gated(self, x: Tensor) -> Tensor:
        return onednn.gated_linear(x, *self._packed(), self.bias)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, gates = self._packed()
        value_bias, gate_bias = (None, None) if self.bias is None else self.bias.chunk(2)
        return onednn.linear(x, values, value_bias), onednn.linear(x, gates, gate_bias)

    def _packed(self) -> tuple[Tensor, Tensor]:
        def pack() -> tuple[Tensor, Tensor]:
            values, gates = self.dense().chunk(2)
            return onednn.packed_matrix(values), onednn.packed_matrix(gates)

        return self.form.get(self.weight, pack)


class PackedConv2d(Conv2dVariant):
    """Computed by oneDNN's own convolution."""

    form: Once[Kernels]

    def convolution(self, x: Tensor, padding: tuple[int, int], add: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        geometry = Geometry.of(self, padding)
        kernel = self.form.get(self.weight, Kernels).packed(self.weight, self.compute_dtype, x.shape, geometry)
        return onednn.convolution(x, kernel, self.bias, geometry, add)


class PointwiseConv2d(Conv2dVariant):
    """A 1x1 convolution, computed as a linear layer, which is faster."""

    form: Once[Tensor]

    @staticmethod
    def suits(layer: Conv2d) -> bool:
        """Whether a layer maps each pixel independently."""
        return layer.kernel_size == layer.stride == (1, 1) and pads(layer) == (0, 0) and layer.groups == 1

    def convolution(
        self,
        x: Tensor,
        padding: tuple[int, int],  # noqa: ARG002 - always 0, because of `suits`
        add: Tensor | None = None,
    ) -> Tensor:
        packed = self.form.get(self.weight, lambda: onednn.packed_matrix(self.dense().flatten(1)))
        added = None if add is None else add.permute(0, 2, 3, 1)
        pixels = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return onednn.linear(pixels, packed, self.bias, added).permute(0, 3, 1, 2)


class WinogradConv2d(Conv2dVariant):
    """A wide 3x3 convolution, computed by Winograd's algorithm."""

    form_growth = winograd.GROWTH
    form: Once[tuple[Tensor, ...]]

    def convolution(self, x: Tensor, padding: tuple[int, int], add: Tensor | None = None) -> Tensor:
        matrices = self.form.get(self.weight, lambda: winograd.packed(self.weight, self.compute_dtype))
        return winograd.convolution(x, matrices, self.bias, padding, add)
