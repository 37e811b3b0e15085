"""What a file holds for one layer, read and checked part by part."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sd_core.adapters.scales import Scales
from sd_core.errors import ModelError, show


@dataclass(frozen=True)
class Module:
    """The parts of a layer's change: `stored` names each in the file, and `name` is the layer's name there. `shape` is
    that of the layer's weight.

    `read` is a `Source`'s: what it returns need not stay valid when the next is read.
    """

    name: str
    layer: nn.Module
    network: str
    stored: Mapping[str, str]
    read: Callable[[str], Tensor] = field(repr=False)
    scales: Scales
    shape: tuple[int, ...]

    @property
    def is_norm(self) -> bool:
        return len(self.shape) == 1

    @property
    def kernel(self) -> tuple[int, ...]:
        """Rows and columns of a convolution, () for a linear layer."""
        return self.shape[2:]

    @property
    def inputs(self) -> int:
        """Numbers that go into one of the output's: input channels * rows * columns."""
        return math.prod(self.shape[1:])

    @property
    def stride(self) -> tuple[int, int]:
        if not isinstance(self.layer, nn.Conv2d):
            return (1, 1)
        rows, columns = self.layer.stride
        return rows, columns

    @property
    def base(self) -> Tensor:
        """The layer's own weight, as it is loaded: it belongs to the network, and lies on the network's device."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach()[:, : self.shape[1]]

    @property
    def values(self) -> Tensor:
        """The numbers of `base`, float32 on the CPU, where a file's tensors are."""
        return self.base.to("cpu", torch.float32)

    def narrowed(self, channels: int) -> "Module":
        """The same as if the layer took fewer input channels."""
        return replace(self, shape=(self.shape[0], channels, *self.kernel))

    def has(self, part: str) -> bool:
        return part in self.stored

    def tensor(self, part: str) -> Tensor:
        """A part as a tensor of its own, float32. ModelError if it is missing, of another type, or not finite."""
        if part not in self.stored:
            beside = next(iter(self.stored.values()))
            raise ModelError(f"{show(beside)} needs another tensor beside it ({part}), which the file lacks")
        tensor = self.read(self.stored[part])
        if not tensor.is_floating_point():
            raise self.error(part, f"holds {tensor.dtype}, not floating-point numbers")
        if not tensor.numel():
            raise self.error(part, f"of shape {list(tensor.shape)} has no elements")
        own = tensor.to(torch.float32, copy=True)
        least, most = torch.aminmax(own)
        if not (math.isfinite(least) and math.isfinite(most)):
            raise self.error(part, "holds infinities or not-a-numbers")
        return own

    def matrix(self, part: str, rows: int | None = None, columns: int | None = None) -> Tensor:
        """A part as a matrix: whatever follows its first dimension is one dimension."""
        tensor = self.tensor(part)
        matrix = tensor.flatten(1) if tensor.dim() > 1 else tensor.reshape(1, -1)
        if (rows not in (None, matrix.shape[0])) or (columns not in (None, matrix.shape[1])):
            wanted = [rows or matrix.shape[0], columns or matrix.shape[1]]
            raise self.error(part, f"of shape {list(tensor.shape)} does not fit: {wanted} is needed")
        return matrix

    def shaped(self, part: str, shape: tuple[int, ...]) -> Tensor:
        """A part in another shape of as many elements."""
        tensor = self.tensor(part)
        if tensor.numel() != math.prod(shape):
            raise self.error(part, f"of shape {list(tensor.shape)} does not fit: {list(shape)} is needed")
        return tensor.reshape(shape)

    def number(self, part: str) -> float | None:
        """A part that is a single number, of any type; None if it is missing."""
        if part not in self.stored:
            return None
        tensor = self.read(self.stored[part])
        if tensor.numel() != 1 or tensor.is_complex():
            raise self.error(part, f"of {tensor.dtype} and shape {list(tensor.shape)} is not a single number")
        number = float(tensor)
        if not math.isfinite(number):
            raise self.error(part, f"is {number}, not a finite number")
        return number

    def scale(self, rank: int) -> float:
        """The factor of the change: alpha / rank. Without an alpha, and with 0, alpha is the rank."""
        given = self.number("scale")
        if given is not None:
            return given
        alpha = self.number("alpha")
        if alpha is None:
            return self.scales.scale(self.network, self.name, rank)
        return alpha / rank if alpha else 1.0

    def error(self, part: str, what: str) -> ModelError:
        return ModelError(f"{show(self.stored[part])} {what}")
