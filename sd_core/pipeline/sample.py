"""One run of a sampler, from its first latents to its last, whatever the image is made of before and after."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from sd_core.pipeline.ahead import supplied
from sd_core.pipeline.attaching import NOTHING_ATTACHED, Attached
from sd_core.pipeline.conditioning import Conditioning
from sd_core.pipeline.guidance import UNCHANGED, Guiding, guided
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.watch import OnStep, watched
from sd_core.request import Request
from sd_core.sampling.noise import Interval, NoiseSource
from sd_core.sampling.registry import OPTIONS, SOLVERS
from sd_core.sampling.schedule import NoiseSchedule, Sigmas, tail
from sd_core.work import Sampling

MAX_STRENGTH = 0.999
"""With `is_exact`, where all steps of a grid are needed, more counts as this (A1111)."""

Wrap = Callable[[Sampling], Sampling]
"""Changes what a sampler asks or is answered."""


def unchanged(sampling: Sampling) -> Sampling:
    return sampling


@dataclass(frozen=True)
class Run:
    """A sampler, its schedule and its steps. `strength` None starts from pure noise; else from an image's latents.

    With `is_exact`, all `steps` are done whatever the strength. `options` are the sampler's, by name; those that are
    left out have their defaults.
    """

    sampler: str
    schedule: str
    steps: int
    guidance_scale: float
    strength: float | None = None
    is_exact: bool = False
    options: Mapping[str, float] = field(default_factory=dict)
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
            options_of(vars(request)),
            Guiding.of(request),
        )

    @classmethod
    def all_of(cls, request: Request) -> "tuple[Run, ...]":
        """The runs of a request in order: one, and another at the larger size if it asks for hires.

        The second run has those of the job's sampler options that its own sampler takes.
        """
        first, hires = cls.of(request), request.hires
        if hires is None:
            return (first,)
        sampler = hires.sampler or request.sampler
        second = replace(
            first,
            sampler=sampler,
            schedule=hires.schedule or request.schedule,
            steps=hires.steps or request.steps,
            guidance_scale=request.guidance_scale if hires.cfg is None or not request.do_scale else hires.cfg,
            strength=hires.strength,
            is_exact=True,
            options={name: value for name, value in first.options.items() if name in SOLVERS[sampler].options},
        )
        return first, second

    def grid(self, model: StableDiffusion) -> Sigmas:
        """The noise levels that it goes through."""
        return self.sigmas(model.denoiser.schedule)

    def sigmas(self, noise_schedule: NoiseSchedule) -> Sigmas:
        """The same for a model with this schedule. Raises `InvalidRequest` if this grid cannot have as many steps."""
        if self._is_extended:
            return self._whole(noise_schedule)[-self.steps - 1 :]
        return SOLVERS[self.sampler].grid(self.schedule, noise_schedule, self.steps, self.strength)

    def span(self, model: StableDiffusion) -> Interval:
        """The lowest level above 0 and the highest one of its whole schedule, whatever the strength."""
        sigmas = self._whole(model.denoiser.schedule)
        return min(sigma for sigma in sigmas if sigma > 0), max(sigmas)

    @property
    def _is_extended(self) -> bool:
        """Whether its schedule has more steps than it does."""
        return self.strength is not None and self.is_exact and SOLVERS[self.sampler].strength is tail

    def _whole(self, noise_schedule: NoiseSchedule) -> Sigmas:
        """Its schedule from pure noise."""
        steps = self.steps
        if self._is_extended and self.strength is not None:
            # A1111's rule. No grid is finer than the steps that the model was trained on, whatever the strength.
            steps = int(min(steps / min(self.strength, MAX_STRENGTH), len(noise_schedule.sigmas)))
        return SOLVERS[self.sampler].grid(self.schedule, noise_schedule, steps)

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
    attached: Attached = NOTHING_ATTACHED,
) -> Generator[Any, Any, Tensor]:
    """Run the sampler from `latents` (1, 4, h, w), clean ones to add noise to; None: from pure noise.

    Draws the initial noise first, unless it is given as `initial`, then the sampler's own numbers. Yields `UNetWork`
    and returns latents.
    """
    solver = SOLVERS[run.sampler]
    sigmas = run.grid(model)
    x = solver.noised(latents, noise.initial() if initial is None else initial, sigmas[0])
    sampling = wrap(solver.run(x, sigmas, noise, run.options, model.denoiser.schedule))
    if on_step is not None:
        sampling = watched(sampling, on_step)
    picture = guided(
        sampling,
        model,
        conditioning,
        run.guidance_scale,
        reads_uncond=solver.reads_uncond,
        guiding=run.guiding,
        steps=len(sigmas) - 1,
        attached=attached,
    )
    ahead = noise.ahead(solver.intervals(sigmas))
    return picture if ahead is None else supplied(picture, ahead)


def options_of(values: Mapping[str, Any]) -> dict[str, float]:
    """The options of samplers that are among the values of a request's fields, by name."""
    return {name: values[name] for name in OPTIONS if values[name] is not None}
