"""What variants share: how they replace a plain layer, and how they prepare its weight at first use."""

from collections.abc import Callable
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from sd_core.models.layers import Conv2d, GatedLinear, Linear, pads

Form = TypeVar("Form")


class Once(Generic[Form]):
    """The form in which a layer uses its weight, kept until the weight is replaced or written to."""

    def __init__(self) -> None:
        self._form: Form | None = None
        self._weight: Tensor | None = None
        self._version = 0

    @property
    def is_made(self) -> bool:
        return self._form is not None

    def get(self, weight: Tensor, make: Callable[[], Form]) -> Form:
        version = 0 if weight.is_inference() else weight._version
        if self._form is None or self._weight is not weight or self._version != version:
            self._form, self._weight, self._version = make(), weight, version
        return self._form


class Variant:
    """A layer that replaces a plain one of `sd_core.models.layers` and has its name, parameters and settings.

    `weight` stays the tensor that was loaded, for example a view of the checkpoint's file, and no forward changes it.
    The form that the layer multiplies with is made at first use and kept beside it.
    """

    # Memory of that form, relative to the weight in `compute_dtype`; 0 for a variant that makes none.
    form_growth: ClassVar[float] = 1.0

    weight: Tensor
    name: str
    compute_dtype: torch.dtype
    form: Once[Any]

    def reset_parameters(self) -> None:
        """Do nothing: torch's constructors call this, and `of` replaces the parameters."""

    def take_over(self, layer: Linear | GatedLinear | Conv2d, dtype: torch.dtype) -> None:
        """Take the name, mode and weight (the same tensor) of a layer, to compute in `dtype`."""
        assert isinstance(self, nn.Module)
        self.weight, self.name = layer.weight, layer.name
        self.compute_dtype, self.form = dtype, Once()
        self.train(layer.training)

    def bytes_to_pack(self) -> int:
        """Bytes that the first use will allocate."""
        if self.form.is_made:
            return 0
        return int(self.weight.numel() * self.compute_dtype.itemsize * self.form_growth)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as a plain tensor, in the compute dtype unless another is given."""
        return self.weight.detach().to(dtype or self.compute_dtype)


class LinearVariant(Variant, Linear):
    @classmethod
    def of(cls, layer: Linear, dtype: torch.dtype) -> Self:
        variant = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        variant.bias = layer.bias
        variant.take_over(layer, dtype)
        return variant


class GatedLinearVariant(Variant, GatedLinear):
    @classmethod
    def of(cls, layer: GatedLinear, dtype: torch.dtype) -> Self:
        variant = cls(layer.in_features, layer.out_features // 2, device="meta")
        variant.bias = layer.bias
        variant.take_over(layer, dtype)
        return variant


class Conv2dVariant(Variant, Conv2d):
    @classmethod
    def of(cls, layer: Conv2d, dtype: torch.dtype) -> Self:
        kernel, stride, padding, dilation = map(_pair, (layer.kernel_size, layer.stride, pads(layer), layer.dilation))
        variant = cls(
            layer.in_channels,
            layer.out_channels,
            kernel,
            stride,
            padding,
            dilation,
            layer.groups,
            bias=layer.bias is not None,
            device="meta",
        )
        variant.bias = layer.bias
        variant.take_over(layer, dtype)
        return variant


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = values
    return rows, columns
