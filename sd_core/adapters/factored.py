"""Changes that stay in factors, because a dense copy of every layer would be as large as the network."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.adapters.delta import NO_PADDING, Delta


@dataclass(frozen=True, eq=False)
class Hadamard(Delta):
    """(a @ b) * (c @ d), elementwise: a and c (out, r), b and d (r, in * rows * columns). The product is made when it
    is used.

    Source: Hyeon-Woo et al. 2022, "FedPara"; LyCORIS' LoHa. `shape` is that of the layer's weight.
    """

    factors: tuple[Tensor, Tensor, Tensor, Tensor]
    shape: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    bias = None

    def __call__(self, x: Tensor, padding: tuple[int, int] = NO_PADDING) -> Tensor:
        return product(x, self.weight(), self.stride, padding)

    def weight(self) -> Tensor:
        a, b, c, d = self.factors
        return ((a @ b).mul_(c @ d)).reshape(self.shape)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Hadamard":
        a, b, c, d = (each.to(device, dtype) for each in self.factors)
        return Hadamard((a, b, c, d), self.shape, self.stride)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.factors)


@dataclass(frozen=True, eq=False)
class Kronecker(Delta):
    """The Kronecker product of a matrix (a, b) and a smaller change of `second`, of a weight (c, d, ...).

    It is applied as two small products: the input's channels are b groups of d, the output's a groups of c.
    Source: LyCORIS' LoKr.
    """

    first: Tensor
    second: Delta
    bias = None

    def __call__(self, x: Tensor, padding: tuple[int, int] = NO_PADDING) -> Tensor:
        groups = self.first.shape[1]
        if x.dim() == 4:
            mapped = self.second(x.reshape(-1, x.shape[1] // groups, *x.shape[2:]), padding)  # (n * b, c, H, W)
            mixed: Tensor = torch.einsum("ab,nbchw->nachw", self.first, mapped.unflatten(0, (-1, groups)))
            return mixed.flatten(1, 2)
        mapped = self.second(x.unflatten(-1, (groups, -1)))  # (n, ..., b, c)
        return (self.first @ mapped).flatten(-2)

    def weight(self) -> Tensor:
        second = self.second.weight()
        dense: Tensor = torch.einsum("ab,cd...->acbd...", self.first, second)
        return dense.flatten(2, 3).flatten(0, 1)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Kronecker":
        return Kronecker(self.first.to(device, dtype), self.second.to(device, dtype))

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.second.nbytes


def product(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """A linear layer or a convolution of this weight, without bias."""
    weight = weight.to(x.dtype)
    if weight.dim() == 2:
        return F.linear(x, weight)
    return F.conv2d(x, weight, stride=stride, padding=padding)
