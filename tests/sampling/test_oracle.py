"""Every registered sampler, asked to denoise towards a known picture by a model that is always right."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import tail
from sd_core.work import Sampling, UNetCall

SHAPE = (1, 4, 6, 10)
CPU = torch.device("cpu")


EVERY_SAMPLER = [(name, schedule) for name, solver in SOLVERS.items() for schedule in solver.schedules]


def exact_eps(call: UNetCall, x0: Tensor) -> Tensor:
    return (call.latents * (1 + call.sigma**2) ** 0.5 - x0) / call.sigma


def finish(sampling: Sampling, x0: Tensor) -> tuple[Tensor, list[UNetCall]]:
    """Runs a sampler to its end, answering with the exact eps for x0."""
    calls = [next(sampling)]
    while True:
        try:
            calls.append(sampling.send(exact_eps(calls[-1], x0)))
        except StopIteration as stop:
            return stop.value, calls


@pytest.mark.parametrize(("solver", "schedule"), EVERY_SAMPLER)
@pytest.mark.parametrize("steps", [1, 2, 7, 150])
@pytest.mark.parametrize("strength", [None, 0.4, 1.0])
def test_lands_on_the_final_noise_level(solver: str, schedule: str, steps: int, strength: float | None) -> None:
    entry = SOLVERS[solver]
    sigmas = entry.schedules[schedule](steps)
    x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    noise = CPUNoise(2, SHAPE, CPU)
    if strength is not None:
        sigmas = tail(sigmas, strength)
    start = noise.draw()
    x, calls = finish(entry.run(entry.noised(None if strength is None else x0, start, sigmas[0]), sigmas, noise), x0)
    # Where the schedule does not end in the clean picture, the noise left is the noise that the first call showed.
    final = sigmas[-1]
    expected = (x0 + final * exact_eps(calls[0], x0)) / (1 + final**2) ** 0.5
    assert torch.allclose(x, expected, rtol=1e-4, atol=1e-4)
    assert {call.step for call in calls} == set(range(len(sigmas) - 1))
    assert all(0 <= call.timestep <= 999 for call in calls)


@pytest.mark.parametrize(("solver", "schedule"), EVERY_SAMPLER)
def test_noise_levels_fall(solver: str, schedule: str) -> None:
    for steps in (1, 2, 3, 20, 150):
        sigmas = SOLVERS[solver].schedules[schedule](steps)
        assert len(sigmas) == steps + 1
        assert all(high > low >= 0 for high, low in pairwise(sigmas))


@pytest.mark.parametrize(("solver", "schedule"), EVERY_SAMPLER)
def test_x_is_not_changed_in_place(solver: str, schedule: str) -> None:
    entry = SOLVERS[solver]
    sigmas = entry.schedules[schedule](5)
    noise = CPUNoise(2, SHAPE, CPU)
    x = entry.noised(None, noise.draw(), sigmas[0])
    before = x.clone()
    finish(entry.run(x, sigmas, noise), torch.zeros(SHAPE))
    assert torch.equal(x, before)
