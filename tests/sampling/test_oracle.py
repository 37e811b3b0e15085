"""Every registered sampler, asked to denoise towards known latents by a model that is always right."""

from itertools import pairwise

import pytest
import torch

from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import NoiseSchedule, v1_schedule
from sd_core.work import Call, Prediction
from tests.support.drive import drive

SHAPE = (1, 4, 6, 10)
CPU = torch.device("cpu")
EVERY_SAMPLER = [(name, schedule) for name, solver in SOLVERS.items() for schedule in solver.schedules]
NOISE_SCHEDULES = [v1_schedule(), v1_schedule(zero_terminal_snr=True)]


@pytest.mark.parametrize("noise_schedule", NOISE_SCHEDULES, ids=["v1", "zero_terminal_snr"])
@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
@pytest.mark.parametrize("steps", [1, 2, 7, 150])
@pytest.mark.parametrize("strength", [None, 0.4, 1.0])
def test_reaches_the_final_noise_level(
    noise_schedule: NoiseSchedule, name: str, schedule: str, steps: int, strength: float | None
) -> None:
    solver = SOLVERS[name]
    sigmas = solver.grid(schedule, noise_schedule, steps, strength)
    x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    noise = CPUNoise(2, SHAPE, CPU)
    start = solver.noised(None if strength is None else x0, noise.draw(), sigmas[0])
    x, calls = drive(solver.run(start, sigmas, noise), lambda call: Prediction(x0, x0))
    assert torch.equal(calls[0].x, start) or torch.allclose(calls[0].x, start, rtol=1e-6)
    # If the grid does not end at sigma 0, the noise that is left is the noise in the first call's x.
    final = sigmas[-1]
    expected = (x0 + final * (calls[0].x - x0) / calls[0].sigma) / (1 + final**2) ** 0.5
    assert torch.allclose(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_calls_are_as_many_as_declared_and_numbered(name: str, schedule: str, steps: int) -> None:
    solver = SOLVERS[name]
    sigmas = solver.grid(schedule, v1_schedule(), steps)
    for visited in (sigmas, sigmas[:-1] if steps > 1 else sigmas):  # a grid that ends above sigma 0 too
        noise = CPUNoise(2, SHAPE, CPU)
        _, calls = drive(
            solver.run(solver.noised(None, noise.draw(), visited[0]), visited, noise),
            lambda call: Prediction(call.x * 0, call.x * 0),
        )
        assert len(calls) == solver.calls(visited)
        steps_done = len(visited) - 1
        numbers = [(call.step, call.call) for call in calls]
        assert numbers == sorted(set(numbers))
        assert {step for step, call in numbers if call == 0} == set(range(steps_done))
        assert all(call.call == 0 or (call.step, call.call - 1) in numbers for call in calls)


@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
def test_noise_levels_fall(name: str, schedule: str) -> None:
    for noise_schedule in NOISE_SCHEDULES:
        for steps in (1, 2, 3, 20, 150):
            sigmas = SOLVERS[name].grid(schedule, noise_schedule, steps)
            assert len(sigmas) == steps + 1
            assert all(high > low >= 0 for high, low in pairwise(sigmas))


@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
@pytest.mark.parametrize(
    ("steps", "strength", "kept"),
    [(10, 0.8, 8), (10, 1.0, 10), (10, 0.01, 1), (25, 0.5, 12), (10, 0.69, 6), (1, 0.3, 1)],
)
def test_strength_keeps_the_last_steps(name: str, schedule: str, steps: int, strength: float, kept: int) -> None:
    solver = SOLVERS[name]
    whole = solver.grid(schedule, v1_schedule(), steps)
    assert solver.grid(schedule, v1_schedule(), steps, strength) == whole[-kept - 1 :]


@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
def test_x_is_not_changed_in_place(name: str, schedule: str) -> None:
    solver = SOLVERS[name]
    sigmas = solver.grid(schedule, v1_schedule(), 5)
    noise = CPUNoise(2, SHAPE, CPU)
    x = solver.noised(None, noise.draw(), sigmas[0])
    before = x.clone()
    shown = []

    def answer(call: Call) -> Prediction:
        shown.append((call.x, call.x.clone()))
        return Prediction(torch.zeros(SHAPE), torch.zeros(SHAPE))

    drive(solver.run(x, sigmas, noise), answer)
    assert torch.equal(x, before)
    assert all(torch.equal(kept, copy) for kept, copy in shown)


@pytest.mark.parametrize("name", SOLVERS)
def test_pure_noise_and_noised_latents(name: str) -> None:
    solver, noise, latents = SOLVERS[name], torch.ones(SHAPE), torch.full(SHAPE, 3.0)
    expected = 5**0.5 if name in ("ddpm", "ddim") else 2.0
    torch.testing.assert_close(solver.noised(None, noise, 2.0), noise * expected)
    torch.testing.assert_close(solver.noised(latents, noise, 2.0), torch.full(SHAPE, 5.0))
