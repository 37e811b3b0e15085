"""What is asked of the core, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Request:
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
class Result:
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
