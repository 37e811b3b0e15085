"""Noise that belongs to one picture."""

from typing import Protocol

import torch
from torch import Tensor

from sd_core.device import upload


class NoiseSource(Protocol):
    """Where a picture's normal noise comes from; every draw has the shape of its latents, (1, 4, h, w) float32."""

    def draw(self) -> Tensor: ...


class CPUNoise:
    """One CPU generator: the same seed draws the same noise on any device and beside any neighbour."""

    def __init__(self, seed: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._shape = shape
        self.device = device

    def draw(self) -> Tensor:
        return upload(torch.randn(self._shape, generator=self._generator), self.device)
