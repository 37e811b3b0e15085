"""Noise that belongs to one picture."""

from typing import Protocol

import torch
from torch import Tensor

from sd_core.device import upload


class NoiseSource(Protocol):
    """One picture's normal noise of variance 1, float32; its shape is that of the latents, (1, 4, h, w)."""

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """The next random numbers, of another shape if one is given."""
        ...

    def between(self, sigma: float, sigma_next: float) -> Tensor:
        """The noise that a stochastic solver adds on its way from sigma to sigma_next.

        Noise of disjoint intervals is independent.
        """
        ...


class CPUNoise:
    """One CPU generator: a seed gives the same noise on any device, alone and in a batch."""

    def __init__(self, seed: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._shape = shape
        self.device = device

    def draw(self, shape: tuple[int, ...] | None = None) -> Tensor:
        return upload(torch.randn(shape or self._shape, generator=self._generator), self.device)

    def between(self, sigma: float, sigma_next: float) -> Tensor:  # noqa: ARG002
        """The next draw, whatever the interval.

        This is right for intervals that do not overlap. It is not a Brownian path: overlapping intervals get
        independent noise too, and asking twice for an interval gives two different answers.
        """
        return self.draw()
