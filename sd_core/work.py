"""What a picture asks of the networks, and what a sampler asks of its model."""

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """A prompt's and its negative prompt's hidden states, each (1, T, D)."""

    positive: Tensor
    negative: Tensor


@dataclass(frozen=True)
class Call:
    """A solver's question: the clean latents in x = x0 + sigma * noise, (1, 4, h, w) float32.

    `sigma` is the noise's standard deviation relative to the signal, `step` counts from 0, and `call` counts the
    calls of one step from 0.
    """

    x: Tensor
    sigma: float
    step: int
    call: int = 0


@dataclass(frozen=True)
class Prediction:
    """The answer to a `Call`: the clean latents with guidance, and those of the negative prompt alone.

    Both are (1, 4, h, w) float32. Without guidance they are equal, unless the solver declares that it reads
    `x0_uncond`.
    """

    x0: Tensor
    x0_uncond: Tensor


Sampling = Generator[Call, Prediction, Tensor]
"""A solver in progress: yields calls, receives predictions, returns the final latents as the VAE takes them."""


@dataclass(frozen=True)
class UNetCall:
    """A sampler's question: the noise (eps) in these latents.

    `latents` (1, 4, h, w) float32 have the variance-preserving scale that the UNet was trained on, whatever space
    the sampler works in; `sigma` is their noise level in units of the signal; `step` counts from 0.
    """

    latents: Tensor
    timestep: float
    sigma: float
    step: int


@dataclass(frozen=True)
class UNetRows:
    """One `UNetCall` with the contexts to see it in: n rows of one forward, answered by eps (n, 4, h, w)."""

    latents: Tensor
    timestep: float
    context: Tensor  # (n, T, D)


@dataclass(frozen=True)
class Encode:
    """Pixels (1, 3, H, W) in [-1, 1] and normal noise (1, 4, h, w), answered by latents (1, 4, h, w).

    Works that hold the very same `pixels` are answered by one forward, which encodes no other picture: a flat picture
    has channels of hardly any variance, and normalizing those would show the rounding of the company they were in.
    """

    pixels: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Decode:
    """Latents (1, 4, h, w), answered by pixels (1, 3, H, W), about [-1, 1]."""

    latents: Tensor


Work = UNetRows | Encode | Decode
"""What a picture asks of the networks; the runner stacks work of one kind into one forward."""

Picture = Generator[Work, Tensor, Tensor]
"""A picture in the making: asks for work, returns pixels (1, 3, H, W)."""
