"""What the next samplers and schedules need, each added to a copy of the tables by one line."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from math import atan, sqrt, tan

import numpy as np
import pytest
import torch
from torch import Tensor

from sd_core.errors import InvalidRequest
from sd_core.sampling.names import Registry
from sd_core.sampling.noise import CPUNoise, NoiseSource
from sd_core.sampling.registry import REGISTRY, SCHEDULES, SOLVERS
from sd_core.sampling.schedule import NoiseSchedule, Sigmas, SigmasOf, v1_schedule
from sd_core.sampling.solver import NO_OPTIONS, Schedule, Solver, two_calls_a_step
from sd_core.work import Call, Prediction, Sampling
from tests.support.drive import drive

SHAPE = (1, 4, 3, 5)
X0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def with_solver(name: str, solver: Solver) -> Registry:
    return Registry({**SOLVERS, name: solver}, SCHEDULES, REGISTRY.default)


def with_schedules(**added: Schedule) -> Registry:
    return Registry(SOLVERS, {**SCHEDULES, **added}, REGISTRY.default)


def run(
    solver: Solver, answer: Callable[[Call], Prediction], options: Mapping[str, float] = NO_OPTIONS
) -> tuple[Tensor, list[Call]]:
    sigmas = solver.grid("default", v1_schedule(), 5)
    noise = CPUNoise(2, SHAPE, torch.device("cpu"))
    start = solver.noised(None, noise.draw(), sigmas[0])
    return drive(solver.run(start, sigmas, noise, options), answer)


def always_right(call: Call) -> Prediction:
    return Prediction(X0, X0)


def sgm_uniform_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    timesteps = np.linspace(len(noise_schedule.sigmas) - 1, 0, steps + 1)[:-1]
    return (*(noise_schedule.sigma(float(t)) for t in timesteps), 0.0)


def kl_optimal_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    low, high = atan(noise_schedule.sigmas[0]), atan(noise_schedule.sigmas[-1])
    return (*(tan(high + part * (low - high)) for part in np.linspace(0, 1, steps)), 0.0)


SGM_UNIFORM = Schedule("SGM Uniform", sgm_uniform_sigmas)  # ends in "Uniform", which is another schedule's name
KL_OPTIMAL = Schedule("KL Optimal", kl_optimal_sigmas)


@pytest.mark.parametrize(
    ("spelling", "schedule"),
    [
        ("euler_sgm_uniform", "sgm_uniform"),
        ("Euler SGM Uniform", "sgm_uniform"),
        ("EulerDiscrete SGMUniform", "sgm_uniform"),
        ("Euler Uniform", "default"),
        ("euler_kl_optimal", "kl_optimal"),
        ("Euler KL Optimal", "kl_optimal"),
    ],
)
def test_schedules_whose_names_have_several_words(spelling: str, schedule: str) -> None:
    registry = with_schedules(sgm_uniform=SGM_UNIFORM, kl_optimal=KL_OPTIMAL)
    assert registry.resolve(spelling, None) == ("euler", schedule)
    assert registry.resolve(spelling, schedule) == ("euler", schedule)
    assert registry.resolve("euler", registry.schedules[schedule].label) == ("euler", schedule)
    assert registry.resolve(registry.a1111_label("heun", schedule), None) == ("heun", schedule)
    assert {"heun_sgm_uniform", "dpmpp_2m_kl_optimal"} <= set(registry.sampler_names())
    assert registry.is_schedule("SGM Uniform") and not REGISTRY.is_schedule("SGM Uniform")


@pytest.mark.parametrize(
    ("schedule", "known"),
    [
        ("sgm_uniform", [14.6146, 8.3072, 5.0924, 3.3251, 2.2797, 1.6156, 1.1629, 0.8319, 0.5712, 0.3437, 0]),
        ("kl_optimal", [14.6146, 4.2324, 2.3937, 1.5971, 1.1330, 0.8152, 0.5729, 0.3725, 0.1953, 0.0292, 0]),
    ],
)
def test_an_added_schedule_is_followed_by_every_solver_without_its_own_grid(schedule: str, known: list[float]) -> None:
    registry = with_schedules(sgm_uniform=SGM_UNIFORM, kl_optimal=KL_OPTIMAL)
    for solver in registry.solvers.values():
        assert (schedule in solver.schedules) == (solver.own_grid is None)
        if solver.own_grid is None:  # the known values are ComfyUI's
            assert solver.grid(schedule, v1_schedule(), 10) == pytest.approx(known, abs=6e-5)
    with pytest.raises(InvalidRequest, match="ddim has no schedule"):
        registry.resolve("ddim", schedule)


def dpm2(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Lu et al. 2022, "DPM-Solver", algorithm 1 with r1 = 1/2 (k-diffusion's `sample_dpm_2` without churn)."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        middle = sqrt(sigma * sigma_next)
        x_middle = x0 + (x - x0) * (middle / sigma)
        x0 = (yield Call(x_middle, middle, step, call=1)).x0
        x = x + (x_middle - x0) / middle * (sigma_next - sigma)
    return x


def test_a_solver_with_two_calls_a_step() -> None:
    registry = with_solver(
        "dpm2", Solver("DPM2", dpm2, calls=two_calls_a_step, a1111_schedule="karras", aliases=("KDPM2Discrete",))
    )
    assert registry.resolve("dpm2", None) == ("dpm2", "default")
    assert registry.resolve("DPM2", None) == ("dpm2", "karras")
    assert registry.resolve("KDPM2DiscreteScheduler", None) == ("dpm2", "default")
    solver = registry.solvers["dpm2"]
    x, calls = run(solver, always_right)
    torch.testing.assert_close(x, X0)
    assert [(call.step, call.call) for call in calls] == [(s, c) for s in range(4) for c in (0, 1)] + [(4, 0)]
    assert len(calls) == solver.calls(solver.grid("default", v1_schedule(), 5)) == 9


def ddim_eta(x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float) -> Sampling:
    """DDIM in the space x0 + sigma * noise, with the share `eta` of DDPM's noise."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        fresh = eta * sigma_next * sqrt(1 - (sigma_next / sigma) ** 2)
        x = x0 + (x - x0) * (sqrt(sigma_next**2 - fresh**2) / sigma) + fresh * noise.draw()
    return x


def test_a_solver_with_an_option() -> None:
    solver = with_solver("ddim_eta", Solver("DDIM eta", ddim_eta, options={"eta": 0.0})).solvers["ddim_eta"]
    by_default, _ = run(solver, tilted)
    none, _ = run(solver, tilted, options={"eta": 0.0})
    full, _ = run(solver, tilted, options={"eta": 1.0})
    assert torch.equal(by_default, none)
    assert (full - none).abs().max() > 0.01
    assert solver.with_defaults({}) == {"eta": 0.0}


def tilted(call: Call) -> Prediction:
    """A prediction that depends on x, so that noise leaves a trace."""
    return Prediction(X0 + 0.1 * torch.sin(call.x), X0)


def test_an_option_that_a_solver_does_not_have_is_refused_before_any_call() -> None:
    solver = Solver("DDIM eta", ddim_eta, options={"eta": 0.0})
    with pytest.raises(InvalidRequest, match="sampler DDIM eta has no option 's_churn'; its options: eta"):
        solver.run(X0, (1.0, 0.0), CPUNoise(1, SHAPE, torch.device("cpu")), {"s_churn": 1.0})
    with pytest.raises(InvalidRequest, match="sampler Euler has no option 'eta'; its options: none"):
        SOLVERS["euler"].with_defaults({"eta": 1.0})


def ancestral_between(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Euler ancestral whose noise belongs to the interval of its step."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        up = sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
        x = x0 + (x - x0) * (sqrt(sigma_next**2 - up**2) / sigma)
        if sigma_next > 0:
            x = x + up * noise.between(sigma, sigma_next)
    return x


def test_a_solver_may_draw_noise_between_two_levels() -> None:
    solver = with_solver("between", Solver("Between", ancestral_between)).solvers["between"]
    ours, _ = run(solver, tilted)
    euler_a, _ = run(SOLVERS["euler_a"], tilted)
    torch.testing.assert_close(ours, euler_a)


def euler_cfg_pp(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Chung et al. 2024, "CFG++": the clean latents are guided, the noise that is added again is not."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        prediction = yield Call(x, sigma, step)
        x = prediction.x0 + (x - prediction.x0_uncond) * (sigma_next / sigma)
    return x


def test_a_solver_that_reads_the_unconditional_prediction() -> None:
    solver = Solver("Euler CFG++", euler_cfg_pp, reads_uncond=True)
    registry = with_solver("euler_cfg_pp", solver)
    assert (
        registry.resolve("Euler CFG++", None) == registry.resolve("euler_cfg_pp", None) == ("euler_cfg_pp", "default")
    )
    assert registry.solvers["euler_cfg_pp"].reads_uncond and not SOLVERS["euler"].reads_uncond
    _, calls = run(registry.solvers["euler_cfg_pp"], lambda call: Prediction(X0, call.x))
    assert all(torch.equal(call.x, X0) for call in calls[1:])


def fifty(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """`steps` of 50 original timesteps, as latent consistency models take them."""
    return picked(noise_schedule, 50, steps)


def picked(noise_schedule: NoiseSchedule, originals: int, steps: int) -> Sigmas:
    indices = np.floor(np.linspace(0, originals, steps, endpoint=False)).astype(int)
    return (*(noise_schedule.sigmas[(originals - index) * 20 - 1] for index in indices), 0.0)


def cut_then_all_steps(sigmas_of: SigmasOf, noise_schedule: NoiseSchedule, steps: int, strength: float) -> Sigmas:
    return picked(noise_schedule, int(50 * strength), steps)


def test_a_solver_with_its_own_grid_and_its_own_meaning_of_strength() -> None:
    lcm = replace(SOLVERS["ddim"], label="LCM", own_grid=fifty, strength=cut_then_all_steps)
    solver = with_solver("lcm", lcm).solvers["lcm"]
    assert list(solver.schedules) == ["default"]
    schedule = v1_schedule()
    timesteps = [schedule.timestep(sigma) for sigma in solver.grid("default", schedule, 4)[:-1]]
    assert timesteps == pytest.approx([999, 759, 499, 259], abs=1e-6)
    timesteps = [schedule.timestep(sigma) for sigma in solver.grid("default", schedule, 4, strength=0.5)[:-1]]
    assert timesteps == pytest.approx([499, 379, 259, 139], abs=1e-6)
