"""diffusers' schedulers, configured so that they follow the conventions of our samplers.

`ddpm`, `ddim`, `plms`, `lcm` and `tcd` need only their options: leading spacing, offset 1, no clipping; fixed_small
variance, and a final alpha of alphas_cumprod[0]. Its sigma schedulers round timesteps or interpolate sigmas linearly,
so they are handed k-diffusion's grid, with its fractional timesteps, in place of their own.
"""

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import v1_schedule
from tests.support.reference import V1_SCHEDULE

OFFSET = {**V1_SCHEDULE, "steps_offset": 1}  # without it the pipelines warn about any grid
LEADING = {**OFFSET, "timestep_spacing": "leading", "clip_sample": False}
DIFFUSERS = ("ddpm", "ddim", "plms", "euler", "euler_a", "heun", "dpmpp_2m", "unipc", "deis", "lcm", "tcd")
"""The solvers that are compared with a scheduler of diffusers."""
VARIANCE_PRESERVING = ("ddpm", "ddim", "plms", "dpmpp_2m", "unipc", "deis", "lcm", "tcd")
"""The solvers whose scheduler in diffusers keeps its latents in the variance-preserving space."""


def reference_scheduler(solver: str, schedule: str, steps: int, prediction_type: str = "epsilon") -> Any:
    """The scheduler that `solver` is compared with, set to `steps` steps; setting it again keeps that grid."""
    scheduler = _scheduler(solver, prediction_type)
    scheduler.set_timesteps(steps)
    if SOLVERS[solver].own_grid is not None:
        return scheduler
    sigmas = SOLVERS[solver].grid(schedule, v1_schedule(), steps)
    grid = torch.tensor(sigmas)
    timesteps = torch.tensor([v1_schedule().timestep(sigma) for sigma in sigmas[:-1]])
    if solver == "heun":  # its grid lists both calls of a step
        timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        grid = torch.cat([grid[:1], grid[1:-1].repeat_interleave(2), grid[-1:]])
    if solver == "deis":
        grid = torch.tensor(sigmas, dtype=torch.float64)  # its coefficients are differences of almost equal numbers
        # Its formula has no value at sigma 0, where ours returns the clean latents: its own first-order step does so.
        grid[-1] = 1e-10
        _end_in_first_order(scheduler)
    lay_out = scheduler.set_timesteps

    def set_timesteps(count: int, device: Any = None) -> None:
        lay_out(count, device=device)
        scheduler.timesteps, scheduler.sigmas = timesteps, grid

    scheduler.set_timesteps = set_timesteps
    scheduler.set_timesteps(steps)
    return scheduler


def lay_out_from(scheduler: Any, timesteps: list[int]) -> None:
    """Let a PNDMScheduler begin at the first of these timesteps, correcting its first step there.

    On its own it begins in the middle of its list, in which the second timestep stands twice: diffusers' image-to-image
    then corrects a step that it has not done.
    """
    scheduler.timesteps = torch.tensor([*timesteps[:2], *timesteps[1:]])


def _end_in_first_order(scheduler: Any) -> None:
    step = scheduler.step

    def stepping(*arguments: Any, **named: Any) -> Any:
        if scheduler.step_index == len(scheduler.timesteps) - 1 or len(scheduler.timesteps) == 1:
            scheduler.lower_order_nums = 0
        return step(*arguments, **named)

    scheduler.step = stepping


def as_reference(solver: str, x: Tensor, sigma: float) -> Tensor:
    """Latents x = x0 + sigma * noise in the space of the scheduler that `solver` is compared with."""
    return x / (1 + sigma**2) ** 0.5 if solver in VARIANCE_PRESERVING else x


def _scheduler(solver: str, prediction_type: str) -> Any:
    predicts = {"prediction_type": prediction_type}
    match solver:
        case "ddpm":
            return DDPMScheduler(**LEADING, **predicts, variance_type="fixed_small")
        case "ddim":
            return DDIMScheduler(**LEADING, **predicts, set_alpha_to_one=False)
        case "plms":
            return PNDMScheduler(**OFFSET, **predicts, skip_prk_steps=True, set_alpha_to_one=False)
        case "lcm":
            return LCMScheduler(**LEADING, **predicts, set_alpha_to_one=False)
        case "tcd":
            return TCDScheduler(**LEADING, **predicts, set_alpha_to_one=False)
        case "unipc":
            return UniPCMultistepScheduler(**OFFSET, **predicts, final_sigmas_type="zero")
        case "deis":
            return DEISMultistepScheduler(**OFFSET, **predicts)
        case "euler":
            return EulerDiscreteScheduler(**OFFSET, **predicts)
        case "euler_a":
            return EulerAncestralDiscreteScheduler(**OFFSET, **predicts)
        case "heun":
            return HeunDiscreteScheduler(**OFFSET, **predicts)
        case "dpmpp_2m":
            return DPMSolverMultistepScheduler(**OFFSET, **predicts, final_sigmas_type="zero")
    raise KeyError(f"no reference for the sampler {solver}: add one")
