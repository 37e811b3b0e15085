"""What a solver and a schedule declare about themselves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, sqrt
from types import MappingProxyType

from torch import Tensor

from sd_core.errors import InvalidRequest
from sd_core.sampling.noise import Interval, NoiseSource
from sd_core.sampling.schedule import NoiseSchedule, Sigmas, SigmasOf, StrengthRule, tail, v1_schedule
from sd_core.work import Sampling

NO_OPTIONS: Mapping[str, float] = MappingProxyType({})
ANCESTRAL: Mapping[str, float] = MappingProxyType({"eta": 1.0, "s_noise": 1.0})
CHURN: Mapping[str, float] = MappingProxyType({"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": inf, "s_noise": 1.0})


def one_call_a_step(sigmas: Sigmas) -> int:
    return len(sigmas) - 1


def two_calls_a_step(sigmas: Sigmas) -> int:
    """Two calls for each step, but one for a step to sigma 0."""
    return sum(2 if sigma_next > 0 else 1 for sigma_next in sigmas[1:])


def up_to_three_calls_a_step(sigmas: Sigmas) -> int:
    """Three calls for each step, but two for the last but one, and one for the last."""
    return sum(min(3, steps_left) for steps_left in range(1, len(sigmas)))


def no_intervals(_sigmas: Sigmas) -> Sequence[Interval]:
    return ()


def unchanged(sigmas_of: SigmasOf) -> SigmasOf:
    return sigmas_of


@dataclass(frozen=True)
class Schedule:
    """A way to space noise levels that any solver without a grid of its own can follow."""

    label: str  # as AUTOMATIC1111 shows it
    sigmas: SigmasOf
    aliases: tuple[str, ...] = ()  # other tools' names, as they write them


@dataclass(frozen=True)
class Solver:
    """A sampler without its schedule.

    - `sample(x, sigmas, noise, **options)` is its generator; `options` has the name and default of each option.
    - `calls(sigmas)` is the number of `Call`s that it makes.
    - `strength` is the rule by which image-to-image shortens its grid, `spacing` what it changes in every schedule.
    - `a1111_schedule` is the schedule that A1111 uses if only the label is given.
    - `aliases` are other tools' names as they write them; variants with a leading "K" or the word "Scheduler" need no
      entry.
    - A solver that `reads_uncond` needs the unconditional prediction even if guidance is off; one that `reads_schedule`
      takes the model's `noise_schedule` as an argument.
    - `intervals(sigmas)` are those of a Brownian path whose noise it asks for, in this order, at most one after a call.
    """

    label: str  # as AUTOMATIC1111 shows it
    sample: Callable[..., Sampling]
    own_grid: SigmasOf | None = None  # its only schedule, "default"; without it, it follows every schedule
    a1111_schedule: str = "default"
    aliases: tuple[str, ...] = ()
    variance_preserving: bool = False  # pure noise to start from has variance 1 once it is scaled for the UNet
    options: Mapping[str, float] = field(default_factory=dict)
    calls: Callable[[Sigmas], int] = one_call_a_step
    reads_uncond: bool = False
    reads_schedule: bool = False
    intervals: Callable[[Sigmas], Sequence[Interval]] = no_intervals
    spacing: Callable[[SigmasOf], SigmasOf] = unchanged
    strength: StrengthRule = tail
    schedules: Mapping[str, SigmasOf] = field(default_factory=dict)  # by name, filled in by the registry

    def grid(self, schedule: str, noise_schedule: NoiseSchedule, steps: int, strength: float | None = None) -> Sigmas:
        """The noise levels to visit. `strength`, in (0, 1], is that of image-to-image.

        `schedule` is a name in `schedules`. Raises `InvalidRequest` if this grid cannot have as many steps.
        """
        sigmas_of = self.schedules[schedule]
        if strength is None:
            return sigmas_of(noise_schedule, steps)
        return self.strength(sigmas_of, noise_schedule, steps, strength)

    def noised(self, latents: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """The x to start from, (1, 4, h, w): pure noise, or the given latents with noise of level sigma."""
        if latents is not None:
            return latents + noise * sigma
        return noise * (sqrt(1 + sigma**2) if self.variance_preserving else sigma)

    def with_defaults(self, options: Mapping[str, float]) -> dict[str, float]:
        """Every option of this solver, from `options` or else its default.

        Raises `InvalidRequest` if `options` has one that the solver does not take.
        """
        for name in options:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise InvalidRequest(f"{name}: sampler {self.label} has no such option; its options: {known}")
        return {**self.options, **options}

    def run(
        self,
        x: Tensor,
        sigmas: Sigmas,
        noise: NoiseSource,
        options: Mapping[str, float] = NO_OPTIONS,
        noise_schedule: NoiseSchedule | None = None,
    ) -> Sampling:
        """Start sampling from x (1, 4, h, w). `noise_schedule` is the model's, v1's if None.

        Raises `InvalidRequest` as `with_defaults` does.
        """
        given = self.with_defaults(options)
        if self.reads_schedule:
            return self.sample(x, sigmas, noise, noise_schedule or v1_schedule(), **given)
        return self.sample(x, sigmas, noise, **given)
