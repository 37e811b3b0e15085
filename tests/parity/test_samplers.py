"""Whole trajectories of every sampler beside diffusers' schedulers, on a smooth function as the model.

`tests.support.reference_schedulers` configures diffusers.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from torch import Tensor

from sd_core.sampling.denoise import Denoiser
from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import ZERO_SNR_ALPHA, NoiseSchedule, Sigmas, v1_schedule
from sd_core.sampling.solver import Solver
from sd_core.work import Call, Prediction
from tests.support.drive import drive
from tests.support.reference import V1_SCHEDULE
from tests.support.reference_schedulers import as_reference, reference_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2

SHAPE = (1, 4, 5, 7)
DRAWING = (DDPMScheduler, EulerAncestralDiscreteScheduler)  # the schedulers that draw noise at each step
EVERY_SAMPLER = [(name, schedule) for name, solver in SOLVERS.items() for schedule in solver.schedules]


def model(x: Tensor, timestep: float) -> Tensor:
    """A smooth function of latents and timestep, about as large as the noise."""
    return 0.9 * x + 0.3 * torch.sin(3 * x + timestep / 150)


def theirs(scheduler: Any, skipped: int, x: Tensor, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """The model's inputs in diffusers, without the first `skipped` calls, and the final latents."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    extra = {"generator": generator} if isinstance(scheduler, DRAWING) else {}
    seen = []
    for timestep in scheduler.timesteps[skipped:]:
        shown = scheduler.scale_model_input(x, timestep)
        seen.append(shown)
        x = scheduler.step(model(shown, float(timestep)), timestep, x, **extra).prev_sample
    return seen, x


def ours(solver: Solver, sigmas: Sigmas, x0: Tensor | None, denoiser: Denoiser) -> tuple[list[Tensor], Tensor]:
    """The model's inputs in our sampler, and the final latents."""
    noise = CPUNoise(5, SHAPE, torch.device("cpu"))
    x = solver.noised(x0, noise.draw(), sigmas[0])

    def answer(call: Call) -> Prediction:
        output = model(denoiser.scaled(call.x, call.sigma), denoiser.timestep(call.sigma))
        clean = denoiser.x0(call.x, call.sigma, output)
        return Prediction(clean, clean)

    end, calls = drive(solver.run(x, sigmas, noise), answer)
    return [denoiser.scaled(call.x, call.sigma) for call in calls], end


def assert_same(ours: tuple[list[Tensor], Tensor], theirs: tuple[list[Tensor], Tensor]) -> None:
    assert len(ours[0]) == len(theirs[0])
    for mine, reference in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]], strict=True):
        assert (mine - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strength", [None, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 25])
@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
def test_every_step_equals_the_references(
    name: str, schedule: str, steps: int, strength: float | None, prediction_type: str
) -> None:
    x0 = None if strength is None else torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    solver = SOLVERS[name]
    sigmas = solver.grid(schedule, v1_schedule(), steps, strength)
    scheduler = reference_scheduler(name, schedule, steps, prediction_type)
    generator = torch.Generator().manual_seed(5)
    x = as_reference(name, solver.noised(x0, torch.randn(SHAPE, generator=generator), sigmas[0]), sigmas[0])
    skipped = len(scheduler.timesteps) - solver.calls(sigmas)
    denoiser = Denoiser(v1_schedule(), prediction_type)
    assert_same(ours(solver, sigmas, x0, denoiser), theirs(scheduler, skipped, x, generator))


def trailing_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Evenly spaced from the last trained timestep on, as Lin et al. 2023 sample a rescaled model."""
    timesteps = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1
    return (*(noise_schedule.sigmas[timestep] for timestep in timesteps), 0.0)


# Euler needs this many steps: diffusers subtracts two values as large as sigma, 4,519, and loses the fifth digit.
TRAILING = [("ddim", DDIMScheduler, steps) for steps in (1, 4, 10, 25)]
TRAILING += [("euler", EulerDiscreteScheduler, steps) for steps in (10, 25)]


@pytest.mark.parametrize(("name", "scheduler_class", "steps"), TRAILING)
def test_v_prediction_with_zero_terminal_snr_equals_diffusers(name: str, scheduler_class: Any, steps: int) -> None:
    solver = replace(SOLVERS[name], schedules={"default": trailing_sigmas})
    denoiser = Denoiser(v1_schedule(zero_terminal_snr=True), "v_prediction")
    sigmas = solver.grid("default", denoiser.schedule, steps)
    options = {"clip_sample": False} if name == "ddim" else {}
    scheduler = scheduler_class(
        **V1_SCHEDULE,
        **options,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    # Our last sigma is ComfyUI's. Of diffusers' schedulers, one keeps an alpha of 0 there, the other has 2^-24.
    scheduler.alphas_cumprod[-1] = ZERO_SNR_ALPHA
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(5)
    x = solver.noised(None, torch.randn(SHAPE, generator=generator), sigmas[0])
    start = x / (1 + sigmas[0] ** 2) ** 0.5 if name == "ddim" else x
    assert denoiser.timestep(sigmas[0]) == pytest.approx(999)
    assert_same(ours(solver, sigmas, None, denoiser), theirs(scheduler, 0, start, generator))
