"""Whole trajectories of every sampler beside a reference, on a smooth model of our own.

`tests.support.reference_schedulers` says how diffusers is configured; `tests.support.reference_samplers` has
k-diffusion's samplers, and formulas for those that neither has.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Tensor

from sd_core.sampling.denoise import Denoiser
from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import ZERO_SNR_ALPHA, NoiseSchedule, Sigmas, v1_schedule
from sd_core.sampling.solver import NO_OPTIONS, Solver
from sd_core.work import Call, Prediction
from tests.support.drive import drive
from tests.support.reference import V1_SCHEDULE
from tests.support.reference_samplers import BROWNIAN, K_DIFFUSION, WITH_UNCOND, WRITTEN_OUT, noise_sampler
from tests.support.reference_schedulers import DIFFUSERS, as_reference, lay_out_from, reference_scheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # diffusers on NumPy 2
    # torchsde rounds the ends of its path, so that the first and the last level are beyond them by some 1e-7.
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),
]

SEED = 5
SHAPE = (1, 4, 5, 7)
STOCHASTIC = (
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)  # draw noise at each step
REFERENCES = {**K_DIFFUSION, **WRITTEN_OUT, **WITH_UNCOND}
EVERY_SAMPLER = [(name, schedule) for name, solver in SOLVERS.items() for schedule in solver.schedules]
OF_DIFFUSERS = [(name, schedule) for name, schedule in EVERY_SAMPLER if name in DIFFUSERS]
OTHERS = [(name, schedule) for name, schedule in EVERY_SAMPLER if name in REFERENCES]
MULTISTEP_SDE = BROWNIAN[1:]  # k-diffusion fails where their first step is the last one
# Large steps after small ones multiply the rounding of float32 by their ratio to the order: here x is in float64.
UNEVEN = [("lms", "linear_quadratic"), ("ipndm_v", "linear_quadratic"), ("dpmpp_2m_cfg_pp", "beta")]
RUNS = [(1, None), (2, None), (10, 1.0), (25, None), (25, 0.6)]


def model(x: Tensor, timestep: float) -> Tensor:
    """A smooth function of latents and timestep, about as large as the noise."""
    return 0.9 * x + 0.3 * torch.sin(3 * x + timestep / 150)


def without_prompt(x: Tensor, timestep: float) -> Tensor:
    """Another one, for the unconditional prediction."""
    return 0.8 * x + 0.2 * torch.cos(2 * x - timestep / 200)


def test_every_sampler_has_a_reference() -> None:
    assert set(SOLVERS) == set(DIFFUSERS) | set(REFERENCES)


def theirs(scheduler: Any, skipped: int, x: Tensor, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """The model's inputs in diffusers, without the first `skipped` calls, and the final latents."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    extra = {"generator": generator} if isinstance(scheduler, STOCHASTIC) else {}
    seen = []
    for timestep in scheduler.timesteps[skipped:]:
        shown = scheduler.scale_model_input(x, timestep)
        seen.append(shown)
        x = scheduler.step(model(shown, float(timestep)), timestep, x, **extra).prev_sample
    return seen, x


def ours(
    solver: Solver,
    sigmas: Sigmas,
    x0: Tensor | None,
    denoiser: Denoiser,
    options: Mapping[str, float] = NO_OPTIONS,
    span: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor], Tensor]:
    """What our sampler shows the model at each call, and where it ends."""
    noise = CPUNoise(SEED, SHAPE, torch.device("cpu"), span=span)
    x = solver.noised(x0, noise.initial(), sigmas[0]).to(dtype)

    def answer(call: Call) -> Prediction:
        shown, timestep = denoiser.scaled(call.x, call.sigma), denoiser.timestep(call.sigma)
        clean, uncond = (network(shown, timestep) for network in (model, without_prompt))
        if dtype == torch.float64:  # which the denoiser does not keep
            return Prediction(call.x - call.sigma * clean, call.x - call.sigma * uncond)
        return Prediction(denoiser.x0(call.x, call.sigma, clean), denoiser.x0(call.x, call.sigma, uncond))

    end, calls = drive(solver.run(x, sigmas, noise, options, denoiser.schedule), answer)
    return [denoiser.scaled(call.x, call.sigma) for call in calls], end


def assert_same(ours: tuple[list[Tensor], Tensor], theirs: tuple[list[Tensor], Tensor]) -> None:
    assert len(ours[0]) == len(theirs[0])
    for mine, reference in zip([*ours[0], ours[1]], [*theirs[0], theirs[1]], strict=True):
        assert (mine - reference).abs().max() <= 1e-4 * reference.abs().max()


def starting_image(strength: float | None) -> Tensor | None:
    return None if strength is None else torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))


# diffusers' PNDM takes the weighted sum of what the network predicts: that of the noise is meant, not that of v.
BOTH_TYPES = [(*sampler, "epsilon") for sampler in OF_DIFFUSERS]
BOTH_TYPES += [(*sampler, "v_prediction") for sampler in OF_DIFFUSERS if sampler[0] != "plms"]


@pytest.mark.parametrize(("name", "schedule", "prediction_type"), BOTH_TYPES)
def test_every_step_is_that_of_diffusers(name: str, schedule: str, prediction_type: str) -> None:
    for steps, strength in RUNS:
        x0 = starting_image(strength)
        solver = SOLVERS[name]
        sigmas = solver.grid(schedule, v1_schedule(), steps, strength)
        scheduler = reference_scheduler(name, schedule, steps, prediction_type)
        if name in ("lcm", "tcd"):
            scheduler.set_timesteps(steps, strength=strength or 1.0)
        if name == "plms":
            lay_out_from(scheduler, [round(v1_schedule().timestep(sigma)) for sigma in sigmas[:-1]])
        generator = torch.Generator().manual_seed(SEED)
        x = as_reference(name, solver.noised(x0, torch.randn(SHAPE, generator=generator), sigmas[0]), sigmas[0])
        skipped = len(scheduler.timesteps) - solver.calls(sigmas)
        denoiser = Denoiser(v1_schedule(), prediction_type)
        assert_same(ours(solver, sigmas, x0, denoiser), theirs(scheduler, skipped, x, generator))


def published(
    name: str,
    sigmas: Sigmas,
    x0: Tensor | None,
    span: tuple[float, float],
    options: Mapping[str, float],
    dtype: torch.dtype,
) -> tuple[list[Tensor], Tensor]:
    """What the reference shows the model at each call, and where it ends."""
    schedule, seen = v1_schedule(), []

    def clean(network: Any, x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma)
        return x - level * network(x / (1 + level**2) ** 0.5, schedule.timestep(level))

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x / (1 + float(sigma) ** 2) ** 0.5)
        return clean(model, x, sigma)

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        x = SOLVERS[name].noised(x0, torch.randn(SHAPE), sigmas[0]).to(dtype)
        extra: dict[str, Any] = {**options}
        if name in K_DIFFUSION:
            extra["disable"] = True
        if name in BROWNIAN:
            extra["noise_sampler"] = noise_sampler(SEED, x, span)
        if name in WITH_UNCOND:
            extra["uncond"] = lambda x, sigma: clean(without_prompt, x, sigma)
        end = REFERENCES[name](guided, x, torch.tensor(sigmas, dtype=dtype), **extra)
    return seen, end


def assert_as_published(
    name: str, schedule: str, steps: int, strength: float | None, options: Mapping[str, float] = NO_OPTIONS
) -> None:
    solver, x0 = SOLVERS[name], starting_image(strength)
    whole = solver.grid(schedule, v1_schedule(), steps)
    span = min(sigma for sigma in whole if sigma > 0), max(whole)
    sigmas = solver.grid(schedule, v1_schedule(), steps, strength)
    dtype = torch.float64 if (name, schedule) in UNEVEN else torch.float32
    mine = ours(solver, sigmas, x0, Denoiser(v1_schedule()), options, span, dtype)
    assert_same(mine, published(name, sigmas, x0, span, options, dtype))


@pytest.mark.parametrize(("name", "schedule"), OTHERS)
def test_every_step_is_the_published_one(name: str, schedule: str) -> None:
    for steps, strength in RUNS:
        if steps > 1 or name not in MULTISTEP_SDE:
            assert_as_published(name, schedule, steps, strength)


@pytest.mark.parametrize("steps", [19, 20, 35, 36, 40, 150])
def test_restarts(steps: int) -> None:
    assert_as_published("restart", "default", steps, None)


CHURNS = [{"s_churn": 3.0}, {"s_churn": 1e3, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.01}]
OPTIONS = [(name, options) for name in ("euler", "heun", "dpm2") for options in CHURNS]
OPTIONS += [
    (name, options)
    for name in ("euler_a", "dpm2_a", "dpmpp_2s_a", *BROWNIAN)
    for options in ({"eta": 0.0}, {"eta": 0.4, "s_noise": 0.9})
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options_are_those_of_k_diffusion(name: str, options: dict[str, float]) -> None:
    assert_as_published(name, "karras", 12, None, options)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("name", "scheduler_class"), [("ddim", DDIMScheduler), ("tcd", TCDScheduler)])
def test_eta_is_that_of_diffusers(name: str, scheduler_class: Any, eta: float) -> None:
    solver = SOLVERS[name]
    sigmas = solver.grid("default", v1_schedule(), 8)
    scheduler = reference_scheduler(name, "default", 8)
    assert isinstance(scheduler, scheduler_class)
    generator = torch.Generator().manual_seed(SEED)
    x = as_reference(name, solver.noised(None, torch.randn(SHAPE, generator=generator), sigmas[0]), sigmas[0])
    seen = []
    for timestep in scheduler.timesteps:
        seen.append(x)
        x = scheduler.step(model(x, float(timestep)), timestep, x, eta=eta, generator=generator).prev_sample
    assert_same(ours(solver, sigmas, None, Denoiser(v1_schedule()), {"eta": eta}), (seen, x))


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
    generator = torch.Generator().manual_seed(SEED)
    x = solver.noised(None, torch.randn(SHAPE, generator=generator), sigmas[0])
    start = x / (1 + sigmas[0] ** 2) ** 0.5 if name == "ddim" else x
    assert denoiser.timestep(sigmas[0]) == pytest.approx(999)
    assert_same(ours(solver, sigmas, None, denoiser), theirs(scheduler, 0, start, generator))
