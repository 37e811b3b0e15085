"""Changes that depend on the layer's own weight.

They hold that weight, not a copy of it, and compute the layer's product once more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sd_core.adapters.delta import NO_PADDING, Delta, channelwise
from sd_core.adapters.factored import product


@dataclass(frozen=True, eq=False)
class Reweighed(Delta):
    """gain * (W + change) - W: one factor (C,) for each output or input channel of the layer, `on_out` says which.

    Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation"; without a change, Liu et al. 2022, (IA)^3.
    `base` is W, which this object does not own.
    """

    base: Tensor
    gain: Tensor
    on_out: bool
    change: Delta | None = None
    stride: tuple[int, int] = (1, 1)
    bias = None

    def __call__(self, x: Tensor, padding: tuple[int, int] = NO_PADDING) -> Tensor:
        gain = channelwise(self.gain, x)
        if not self.on_out:
            scaled = x * gain
            made = product(scaled - x, self.base, self.stride, padding)
            return made if self.change is None else made + self.change(scaled, padding)
        made = product(x, self.base, self.stride, padding) * (gain - 1)
        return made if self.change is None else made + self.change(x, padding) * gain

    def weight(self) -> Tensor:
        base = self.base.to(self.gain.dtype)
        changed = base if self.change is None else base + self.change.weight()
        axis = 0 if self.on_out else 1
        return changed * self.gain.reshape([-1 if axis == i else 1 for i in range(base.dim())]) - base

    def to(self, device: torch.device, dtype: torch.dtype) -> "Reweighed":
        change = None if self.change is None else self.change.to(device, dtype)
        return Reweighed(self.base, self.gain.to(device, dtype), self.on_out, change, self.stride)

    @property
    def nbytes(self) -> int:
        return self.gain.nbytes + (0 if self.change is None else self.change.nbytes)


@dataclass(frozen=True)
class Stage:
    """Rotations (n, b, b) of n blocks of b channels.

    If `stride` is not 0, the blocks are made of two runs of `stride` channels each, interleaved: a step of a butterfly.
    """

    blocks: Tensor
    stride: int = 0

    def __call__(self, channels: Tensor) -> Tensor:  # (..., C)
        if self.stride:
            channels = channels.unflatten(-1, (-1, 2, self.stride)).transpose(-1, -2).flatten(-3)
        grouped = channels.unflatten(-1, self.blocks.shape[:2])
        rotated: Tensor = torch.einsum("nij,...nj->...ni", self.blocks, grouped).flatten(-2)
        if self.stride:
            rotated = rotated.unflatten(-1, (-1, self.stride, 2)).transpose(-1, -2).flatten(-3)
        return rotated


@dataclass(frozen=True, eq=False)
class Rotated(Delta):
    """rescale * R W - W with an orthogonal R of few parameters, which acts on the output's channels.

    Source: Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning"; Liu et al. 2024, "BOFT";
    LyCORIS' functional.diag_oft and functional.boft. `base` is W, which this object does not own.
    """

    base: Tensor
    stages: tuple[Stage, ...]
    rescale: Tensor | None = None
    stride: tuple[int, int] = (1, 1)
    bias = None

    def __call__(self, x: Tensor, padding: tuple[int, int] = NO_PADDING) -> Tensor:
        made = product(x, self.base, self.stride, padding)
        return self._turned(made, 1 if made.dim() == 4 else -1)

    def weight(self) -> Tensor:
        return self._turned(self.base.to(self.stages[0].blocks.dtype), 0)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Rotated":
        stages = tuple(Stage(stage.blocks.to(device, dtype), stage.stride) for stage in self.stages)
        rescale = None if self.rescale is None else self.rescale.to(device, dtype)
        return Rotated(self.base, stages, rescale, self.stride)

    @property
    def nbytes(self) -> int:
        return sum(stage.blocks.nbytes for stage in self.stages)

    def _turned(self, values: Tensor, axis: int) -> Tensor:
        """The change of values whose channels lie along `axis`."""
        before = channels = values.movedim(axis, -1)
        for stage in self.stages:
            channels = stage(channels)
        if self.rescale is not None:
            channels = channels * self.rescale
        return (channels - before).movedim(-1, axis)
