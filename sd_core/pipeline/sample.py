"""One run of a sampler, from its first latents to its last, whatever the image is made of before and after."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sd_core.pipeline.conditioning import Conditioning
from sd_core.pipeline.guidance import guided
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.watch import OnStep, watched
from sd_core.request import Request
from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import Sigmas
from sd_core.work import Sampling

Wrap = Callable[[Sampling], Sampling]
"""Changes what a sampler asks or is answered."""


def unchanged(sampling: Sampling) -> Sampling:
    return sampling


@dataclass(frozen=True)
class Run:
    """A sampler, its schedule and its steps. `strength` None starts from pure noise; else from an image's latents."""

    sampler: str
    schedule: str
    steps: int
    guidance_scale: float
    strength: float | None = None

    @classmethod
    def of(cls, request: Request) -> "Run":
        """The first run of a request."""
        strength = None if request.image is None else request.strength
        return cls(request.sampler, request.schedule, request.steps, request.guidance_scale, strength)

    def grid(self, model: StableDiffusion) -> Sigmas:
        """The noise levels that it goes through."""
        schedule = model.denoiser.schedule
        return SOLVERS[self.sampler].grid(self.schedule, schedule, self.steps, self.strength)

    def calls(self, model: StableDiffusion) -> int:
        """How often it asks the model."""
        return SOLVERS[self.sampler].calls(self.grid(model))


def sample(
    run: Run,
    model: StableDiffusion,
    conditioning: Conditioning,
    latents: Tensor | None,
    noise: NoiseSource,
    on_step: OnStep | None = None,
    wrap: Wrap = unchanged,
    initial: Tensor | None = None,
) -> Generator[Any, Any, Tensor]:
    """Run the sampler from `latents` (1, 4, h, w), clean ones to add noise to; None: from pure noise.

    Draws the initial noise first, unless it is given as `initial`, then what the sampler draws. Yields `UNetWork` and
    returns latents.
    """
    solver = SOLVERS[run.sampler]
    sigmas = run.grid(model)
    x = solver.noised(latents, noise.draw() if initial is None else initial, sigmas[0])
    sampling = wrap(solver.run(x, sigmas, noise, solver.options))
    if on_step is not None:
        sampling = watched(sampling, on_step)
    return guided(sampling, model, conditioning, run.guidance_scale, reads_uncond=solver.reads_uncond)
