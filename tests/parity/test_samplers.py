"""Whole trajectories of every sampler beside diffusers' schedulers, on a smooth model of our own.

How diffusers is configured: `ddpm` and `ddim` need only their options (leading spacing, offset 1, no clipping;
fixed_small variance, and final alpha alphas_cumprod[0]). Its sigma schedulers round timesteps or interpolate sigmas
linearly, so they are handed k-diffusion's grid (float64 sigmas and fractional timesteps) in place of their own.
"""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import tail, v1_schedule

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2

SHAPE = (1, 4, 5, 7)
V1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LEADING = {**V1, "timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False}


def reference(solver: str) -> Any:
    match solver:
        case "ddpm":
            return DDPMScheduler(**LEADING, variance_type="fixed_small")
        case "ddim":
            return DDIMScheduler(**LEADING, set_alpha_to_one=False)
        case "euler":
            return EulerDiscreteScheduler(**V1)
        case "euler_a":
            return EulerAncestralDiscreteScheduler(**V1)
        case "heun":
            return HeunDiscreteScheduler(**V1)
        case "dpmpp_2m":
            return DPMSolverMultistepScheduler(**V1, final_sigmas_type="zero")
    raise AssertionError(f"no reference for the sampler {solver}: add one")


def give_grid(scheduler: Any, solver: str, sigmas: tuple[float, ...]) -> None:
    """Replaces a sigma scheduler's own grid by ours."""
    timesteps = torch.tensor([v1_schedule().timestep(sigma) for sigma in sigmas[:-1]])
    grid = torch.tensor(sigmas)
    if solver == "heun":  # it lists both calls of a step
        timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        grid = torch.cat([grid[:1], grid[1:-1].repeat_interleave(2), grid[-1:]])
    scheduler.timesteps, scheduler.sigmas = timesteps, grid


def model(x: Tensor, timestep: float) -> Tensor:
    """Something smooth that depends on latents and timestep, about as large as the noise."""
    return 0.9 * x + 0.3 * torch.sin(3 * x + timestep / 150)


def theirs(solver: str, schedule: str, steps: int, x0: Tensor | None, strength: float) -> tuple[list[Tensor], Tensor]:
    """What diffusers shows the model at each call, and where it ends."""
    scheduler = reference(solver)
    scheduler.set_timesteps(steps)
    variance_preserving = SOLVERS[solver].variance_preserving
    sigmas = SOLVERS[solver].schedules[schedule](steps)
    if not variance_preserving:
        give_grid(scheduler, solver, sigmas)
    calls = len(scheduler.timesteps)
    kept = calls if x0 is None else max(1, int(steps * strength))
    skipped = calls - (2 * kept - 1 if solver == "heun" and x0 is not None else kept)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(SHAPE, generator=generator)
    first_sigma = torch.tensor(sigmas[-kept - 1 if x0 is not None else 0])
    in_vp = variance_preserving or solver == "dpmpp_2m"
    if x0 is None:
        x = noise if variance_preserving else noise * first_sigma
        if solver == "dpmpp_2m":
            x = x / (1 + first_sigma**2).sqrt()
    else:
        x = x0 + noise * first_sigma
        if in_vp:
            x = x / (1 + first_sigma**2).sqrt()
    seen = []
    for timestep in scheduler.timesteps[skipped:]:
        shown = scheduler.scale_model_input(x, timestep)
        seen.append(shown)
        extra = {"generator": generator} if solver in ("ddpm", "euler_a") else {}
        x = scheduler.step(model(shown, float(timestep)), timestep, x, **extra).prev_sample
    return seen, x


def ours(solver: str, schedule: str, steps: int, x0: Tensor | None, strength: float) -> tuple[list[Tensor], Tensor]:
    entry = SOLVERS[solver]
    sigmas = entry.schedules[schedule](steps)
    if x0 is not None:
        sigmas = tail(sigmas, strength)
    noise = CPUNoise(5, SHAPE, torch.device("cpu"))
    sampling = entry.run(entry.noised(x0, noise.draw(), sigmas[0]), sigmas, noise)
    call, seen = next(sampling), []
    while True:
        seen.append(call.latents)
        try:
            call = sampling.send(model(call.latents, call.timestep))
        except StopIteration as stop:
            return seen, stop.value


@pytest.mark.parametrize("strength", [None, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 25])
@pytest.mark.parametrize(
    ("solver", "schedule"), [(name, schedule) for name, solver in SOLVERS.items() for schedule in solver.schedules]
)
def test_every_step_is_the_references(solver: str, schedule: str, steps: int, strength: float | None) -> None:
    x0 = None if strength is None else torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    arguments = (solver, schedule, steps, x0, strength or 1.0)
    (our_calls, our_end), (their_calls, their_end) = ours(*arguments), theirs(*arguments)
    assert len(our_calls) == len(their_calls)
    for mine, reference_latents in zip([*our_calls, our_end], [*their_calls, their_end], strict=True):
        assert (mine - reference_latents).abs().max() <= 1e-4 * reference_latents.abs().max()
