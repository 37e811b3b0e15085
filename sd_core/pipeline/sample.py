"""One run of a sampler, from its first latents to its last, whatever the image is made of before and after."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sd_core.pipeline.conditioning import Conditioning
from sd_core.pipeline.guidance import UNCHANGED, Guiding, guided
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.watch import OnStep, watched
from sd_core.request import Request
from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import Sigmas, tail
from sd_core.work import Sampling

MAX_STRENGTH = 0.999
"""With `is_exact`, where all steps of a grid are needed, more counts as this (A1111)."""

Wrap = Callable[[Sampling], Sampling]
"""Changes what a sampler asks or is answered."""


@dataclass(frozen=True)
class Run:
    """A sampler, its schedule and its steps. `strength` None starts from pure noise; else from an image's latents.

    With `is_exact`, all `steps` are done whatever the strength.
    """

    sampler: str
    schedule: str
    steps: int
    guidance_scale: float
    strength: float | None = None
    is_exact: bool = False
    guiding: Guiding = UNCHANGED

    @classmethod
    def of(cls, request: Request) -> "Run":
        """The first run of a request."""
        strength = None if request.image is None else request.strength
        return cls(
            request.sampler,
            request.schedule,
            request.steps,
            request.guidance_scale,
            strength,
            request.strength_steps == "exact",
            Guiding.of(request),
        )

    @classmethod
    def all_of(cls, request: Request) -> "tuple[Run, ...]":
        """The runs of a request in order: one, and another at the larger size if it asks for hires."""
        first, hires = cls.of(request), request.hires
        if hires is None:
            return (first,)
        second = replace(
            first,
            sampler=hires.sampler or request.sampler,
            schedule=hires.schedule or request.schedule,
            steps=hires.steps or request.steps,
            guidance_scale=request.guidance_scale if hires.cfg is None or not request.do_scale else hires.cfg,
            strength=hires.strength,
            is_exact=True,
        )
        return first, second

    def grid(self, model: StableDiffusion) -> Sigmas:
        """The noise levels that it goes through."""
        schedule, solver = model.denoiser.schedule, SOLVERS[self.sampler]
        if self.strength is None or not self.is_exact or solver.strength is not tail:
            return solver.grid(self.schedule, schedule, self.steps, self.strength)
        # A1111's rule. No grid is finer than the steps that the model was trained on, whatever the strength.
        steps = int(min(self.steps / min(self.strength, MAX_STRENGTH), len(schedule.sigmas)))
        return solver.grid(self.schedule, schedule, steps)[-self.steps - 1 :]

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
    x = solver.noised(latents, noise.draw(), sigmas[0])
    sampling = wrap(solver.run(x, sigmas, noise, solver.options))
    if on_step is not None:
        sampling = watched(sampling, on_step)
    return guided(
        sampling,
        model,
        conditioning,
        run.guidance_scale,
        reads_uncond=solver.reads_uncond,
        guiding=run.guiding,
        steps=len(sigmas) - 1,
    )
