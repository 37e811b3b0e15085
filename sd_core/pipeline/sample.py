"""One run of a sampler, from its first latents to its last, whatever the image is made of before and after."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sd_core.pipeline.ahead import supplied
from sd_core.pipeline.conditioning import Conditioning
from sd_core.pipeline.guidance import guided
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.watch import OnStep, watched
from sd_core.request import Request
from sd_core.sampling.noise import Interval, NoiseSource
from sd_core.sampling.registry import OPTIONS, SOLVERS
from sd_core.sampling.schedule import Sigmas
from sd_core.work import Sampling

Wrap = Callable[[Sampling], Sampling]
"""Changes what a sampler asks or is answered."""


@dataclass(frozen=True)
class Run:
    """A sampler, its schedule and its steps. `strength` None starts from pure noise; else from an image's latents.

    `options` are the sampler's, by name; those that are left out have their defaults.
    """

    sampler: str
    schedule: str
    steps: int
    guidance_scale: float
    strength: float | None = None
    options: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request) -> "Run":
        """The first run of a request."""
        strength = None if request.image is None else request.strength
        options = options_of(vars(request))
        return cls(request.sampler, request.schedule, request.steps, request.guidance_scale, strength, options)

    def grid(self, model: StableDiffusion) -> Sigmas:
        """The noise levels that it goes through."""
        schedule = model.denoiser.schedule
        return SOLVERS[self.sampler].grid(self.schedule, schedule, self.steps, self.strength)

    def span(self, model: StableDiffusion) -> Interval:
        """The lowest level above 0 and the highest one of its whole schedule, whatever the strength."""
        sigmas = SOLVERS[self.sampler].grid(self.schedule, model.denoiser.schedule, self.steps)
        return min(sigma for sigma in sigmas if sigma > 0), max(sigmas)

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
    wrap: Wrap = lambda sampling: sampling,
) -> Generator[Any, Any, Tensor]:
    """Run the sampler from `latents` (1, 4, h, w), clean ones to add noise to; None: from pure noise.

    Draws the initial noise first, then what the sampler draws. Yields `UNetWork` and returns latents.
    """
    solver = SOLVERS[run.sampler]
    sigmas = run.grid(model)
    x = solver.noised(latents, noise.initial(), sigmas[0])
    sampling = wrap(solver.run(x, sigmas, noise, run.options, model.denoiser.schedule))
    if on_step is not None:
        sampling = watched(sampling, on_step)
    picture = guided(sampling, model, conditioning, run.guidance_scale, reads_uncond=solver.reads_uncond)
    ahead = noise.ahead(solver.intervals(sigmas))
    return picture if ahead is None else supplied(picture, ahead)


def options_of(values: Mapping[str, Any]) -> dict[str, float]:
    """The options of samplers that are among the values of a request's fields, by name."""
    return {name: values[name] for name in OPTIONS if values[name] is not None}
