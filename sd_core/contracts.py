"""The few frozen types that cross floors: what is asked, what a picture asks of the networks, and the errors."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

MAX_SEED = 2**63 - 1


class SDError(Exception):
    """An error that its reader can act on. `code` is the contract's error code of a job that ends with it."""

    code = "internal"


class InvalidRequest(SDError):
    """A job asks for something that does not exist or lies outside the limits."""

    code = "invalid_input"


class InvalidImage(SDError):
    """A job's picture cannot be had, read or used."""

    code = "invalid_image"


class OutOfMemory(SDError):
    """A job does not fit into the device's memory even alone."""

    code = "out_of_memory"


class Busy(SDError):
    """As many jobs wait already as the engine lets wait."""

    code = "busy"


class Broken(SDError):
    """The engine has failed for good; the process can only be started anew."""


class NotFinite(SDError):
    """The networks computed infinities or not-a-numbers, which are no picture."""


class DeviceError(SDError):
    """A device or dtype that does not exist, or that torch cannot use on this machine."""


class ModelError(SDError):
    """A checkpoint or tokenizer file is missing, broken, or of an architecture that this core does not draw."""


@dataclass(frozen=True)
class GenerationRequest:
    """One job, validated and with every default filled in.

    `width` and `height` are pixels, multiples of 8. `image`, where given, is uint8 (height, width, 3) already at
    that size; `strength` acts only with it. `guidance_scale` <= 1 means no classifier-free guidance. Picture i is
    drawn from `seed + i`, wrapping at 2**63.
    """

    prompt: str
    seed: int
    width: int
    height: int
    negative_prompt: str = ""
    steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = "dpmpp_2m"
    schedule: str = "karras"
    num_images: int = 1
    image: np.ndarray | None = None
    strength: float = 0.8

    @property
    def seeds(self) -> list[int]:
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images)]


@dataclass(frozen=True)
class Conditioning:
    """A prompt's and its negative prompt's hidden states, each (1, T, D)."""

    positive: Tensor
    negative: Tensor


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

Sampling = Generator[UNetCall, Tensor, Tensor]
"""A sampler at work: asks for eps, returns latents."""

Picture = Generator[Work, Tensor, Tensor]
"""A picture in the making: asks for work, returns pixels (1, 3, H, W)."""


@dataclass(frozen=True)
class GenerationResult:
    """The pictures of one job, uint8 (H, W, 3) each, with the seed of each and where the time went."""

    images: list[np.ndarray]
    seeds: list[int]
    timings_ms: dict[str, float]  # queue, encode, denoise, decode
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """Where a running job stands: every picture of it has done `step` of its `steps` steps.

    `percent` counts the steps of all its pictures. `preview` draws what its first picture would be if it ended here,
    uint8 (H / 8, W / 8, 3); it waits for the device, so call it on neither the drawing thread nor an event loop.
    """

    step: int
    steps: int
    percent: int
    preview: Callable[[], np.ndarray]


Observe = Callable[[Progress], None]
"""Told of each step that a job has done, on the drawing thread: it must return at once and raise nothing."""
