"""What an adapter adds to the output of one layer, beside the layer's own weight, which stays as it is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.layout import onednn

NO_PADDING = (0, 0)


class Delta(ABC):
    """A change of one layer's weight and bias, at strength 1; immutable.

    It is applied to what the layer gets: (n, ..., in_features), or (n, C, H, W) for a convolution. A norm layer passes
    what it has normalized, before its own weight and bias.
    """

    bias: Tensor | None

    @abstractmethod
    def __call__(self, x: Tensor, padding: tuple[int, int] = NO_PADDING) -> Tensor:
        """What the change of the weight makes of x, without the bias.

        `padding` counts the rows and columns of zeros that a convolution adds on each side.
        """

    @abstractmethod
    def weight(self) -> Tensor:
        """The change as a dense tensor of the layer's weight's shape."""

    @abstractmethod
    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same on another device, in another dtype."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory of its tensors, and of the forms in which they are used."""

    def shortened(self, rank: int) -> "Delta":  # noqa: ARG002
        """The first `rank` ranks alone; a change that has no ranks stays as it is."""
        return self

    def add_to(
        self,
        out: Tensor,
        x: Tensor,
        scale: float = 1.0,
        padding: tuple[int, int] = NO_PADDING,
        gates: Tensor | None = None,
    ) -> None:
        """Add the change, `scale` times, to the layer's output in place.

        Of a gated layer, `out` is the first half of the output and `gates` the second.
        """
        outs = (out,) if gates is None else (out, gates)
        self._add_product(outs, x, scale, padding)
        if self.bias is not None:
            for part, bias in zip(outs, self.bias.chunk(len(outs)), strict=True):
                part.add_(channelwise(bias, part), alpha=scale)

    def _add_product(self, outs: Sequence[Tensor], x: Tensor, scale: float, padding: tuple[int, int]) -> None:
        """As `add_to`, without the bias, to equal parts of the output. Override this if there is a faster way."""
        product = self(x, padding)
        for out, part in zip(outs, product.chunk(len(outs), dim=-1) if len(outs) > 1 else (product,), strict=True):
            out.add_(part, alpha=scale)


@dataclass(frozen=True, eq=False)
class LowRank(Delta):
    """up @ down: of a linear layer (out, r) and (r, in); of a convolution (out, r) and (r, in, rows, columns)."""

    down: Tensor
    up: Tensor
    stride: tuple[int, int] = (1, 1)
    bias: Tensor | None = None

    def __call__(self, x: Tensor, padding: tuple[int, int] = NO_PADDING) -> Tensor:
        out = F.linear(self._hidden(x, padding), self.up)
        return out if self.down.dim() == 2 else out.permute(0, 3, 1, 2)

    def weight(self) -> Tensor:
        dense: Tensor = (self.up @ self.down.flatten(1)).unflatten(1, self.down.shape[1:])
        return dense

    def to(self, device: torch.device, dtype: torch.dtype) -> "LowRank":
        return LowRank(
            self.down.to(device, dtype), self.up.to(device, dtype), self.stride, _moved(self.bias, device, dtype)
        )

    @property
    def nbytes(self) -> int:
        copies = 2 if self._packs else 1
        return copies * self.down.nbytes + self.up.nbytes + _nbytes(self.bias)

    def shortened(self, rank: int) -> "LowRank":
        return LowRank(self.down[:rank], self.up[:, :rank], self.stride, self.bias)

    def _hidden(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """What down makes of x, channels last: (n, ..., r)."""
        if not self._is_matrix:
            return F.conv2d(x, self.down, stride=self.stride, padding=padding).permute(0, 2, 3, 1)
        entries = x if self.down.dim() == 2 else x.permute(0, 2, 3, 1)
        if self._packs and not torch.is_grad_enabled():
            return onednn.linear(entries.contiguous(), self._packed_down, None)
        return F.linear(entries, self.down.flatten(1))

    @property
    def _is_matrix(self) -> bool:
        """Whether down maps each entry, or each pixel, by itself."""
        return self.down.dim() == 2 or (self.down.shape[2:] == (1, 1) and self.stride == (1, 1))

    @cached_property
    def _packs(self) -> bool:
        return self._is_matrix and self.down.device.type == "cpu" and onednn.packs(self.down.dtype)

    @cached_property
    def _packed_down(self) -> Tensor:
        """A product with so few rows takes half the time with a packed matrix; `up` gains nothing by it."""
        return onednn.packed_matrix(self.down.flatten(1))

    def _add_product(self, outs: Sequence[Tensor], x: Tensor, scale: float, padding: tuple[int, int]) -> None:
        hidden = self._hidden(x, padding)
        for out, up in zip(outs, self.up.chunk(len(outs)), strict=True):
            channels_last = out if self.down.dim() == 2 else out.permute(0, 2, 3, 1)
            if channels_last.is_contiguous():
                entries = channels_last.view(-1, channels_last.shape[-1])
                entries.addmm_(hidden.reshape(-1, hidden.shape[-1]), up.t(), alpha=scale)
            else:
                channels_last.add_(F.linear(hidden, up), alpha=scale)


@dataclass(frozen=True, eq=False)
class Dense(Delta):
    """The whole change, in the shape of the layer's weight: (out, in) or (out, in, rows, columns)."""

    delta: Tensor
    stride: tuple[int, int] = (1, 1)
    bias: Tensor | None = None

    def __call__(self, x: Tensor, padding: tuple[int, int] = NO_PADDING) -> Tensor:
        if self.delta.dim() == 2:
            return F.linear(x, self.delta)
        return F.conv2d(x, self.delta, stride=self.stride, padding=padding)

    def weight(self) -> Tensor:
        return self.delta

    def to(self, device: torch.device, dtype: torch.dtype) -> "Dense":
        return Dense(self.delta.to(device, dtype), self.stride, _moved(self.bias, device, dtype))

    @property
    def nbytes(self) -> int:
        return self.delta.nbytes + _nbytes(self.bias)


@dataclass(frozen=True, eq=False)
class Norm(Delta):
    """The change (C,) of the weight of a group or layer norm, and of its bias."""

    factor: Tensor | None
    bias: Tensor | None = None

    def __call__(self, x: Tensor, padding: tuple[int, int] = NO_PADDING) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(x) if self.factor is None else x * channelwise(self.factor, x)

    def weight(self) -> Tensor:
        if self.factor is not None:
            return self.factor
        if self.bias is None:
            raise ValueError("a change of neither weight nor bias")
        return torch.zeros_like(self.bias)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Norm":
        return Norm(_moved(self.factor, device, dtype), _moved(self.bias, device, dtype))

    @property
    def nbytes(self) -> int:
        return _nbytes(self.factor) + _nbytes(self.bias)

    def _add_product(self, outs: Sequence[Tensor], x: Tensor, scale: float, padding: tuple[int, int]) -> None:  # noqa: ARG002
        if self.factor is not None:
            outs[0].addcmul_(x, channelwise(self.factor, x), value=scale)


def channelwise(values: Tensor, x: Tensor) -> Tensor:  # (C,)
    """One value per channel, shaped to broadcast over x (n, C, H, W) or (n, ..., C)."""
    return values[:, None, None] if x.dim() == 4 else values


def _moved(tensor: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(device, dtype)


def _nbytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.nbytes
