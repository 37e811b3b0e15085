"""Whole trajectories of every sampler beside diffusers' schedulers, on a smooth model of our own.

`tests.support.reference_schedulers` says how diffusers is configured.
"""

import pytest
import torch
from torch import Tensor

from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import tail
from tests.support.reference_schedulers import reference_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2

SHAPE = (1, 4, 5, 7)


def model(x: Tensor, timestep: float) -> Tensor:
    """Something smooth that depends on latents and timestep, about as large as the noise."""
    return 0.9 * x + 0.3 * torch.sin(3 * x + timestep / 150)


def theirs(solver: str, schedule: str, steps: int, x0: Tensor | None, strength: float) -> tuple[list[Tensor], Tensor]:
    """What diffusers shows the model at each call, and where it ends."""
    scheduler = reference_scheduler(solver, schedule, steps)
    sigmas = SOLVERS[solver].schedules[schedule](steps)
    calls = len(scheduler.timesteps)
    kept = calls if x0 is None else max(1, int(steps * strength))
    skipped = calls - (2 * kept - 1 if solver == "heun" and x0 is not None else kept)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(SHAPE, generator=generator)
    first_sigma = sigmas[-kept - 1 if x0 is not None else 0]
    x = SOLVERS[solver].noised(x0, noise, first_sigma)
    if solver == "dpmpp_2m":  # diffusers' works in the variance-preserving space
        x = x / (1 + first_sigma**2) ** 0.5
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
