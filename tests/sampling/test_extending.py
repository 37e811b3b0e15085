"""One more sampler and one more schedule, each added to a copy of the tables by one line."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sd_core.errors import InvalidRequest
from sd_core.sampling.names import Registry
from sd_core.sampling.noise import CPUNoise, NoiseSource
from sd_core.sampling.registry import REGISTRY, SCHEDULES, SOLVERS
from sd_core.sampling.schedule import NoiseSchedule, Sigmas, v1_schedule
from sd_core.sampling.solver import NO_OPTIONS, Schedule, Solver, two_calls_a_step
from sd_core.work import Call, Prediction, Sampling
from tests.support.drive import drive

SHAPE = (1, 4, 3, 5)
X0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def with_solver(name: str, solver: Solver) -> Registry:
    return Registry({**SOLVERS, name: solver}, SCHEDULES, REGISTRY.default)


def run(
    solver: Solver, answer: Callable[[Call], Prediction], options: Mapping[str, float] = NO_OPTIONS
) -> tuple[Tensor, list[Call]]:
    sigmas = solver.grid("default", v1_schedule(), 5)
    noise = CPUNoise(2, SHAPE, torch.device("cpu"))
    start = solver.noised(None, noise.initial(), sigmas[0])
    return drive(solver.run(start, sigmas, noise, options), answer)


def tilted(call: Call) -> Prediction:
    """A prediction that depends on x, so that noise leaves a trace."""
    return Prediction(X0 + 0.1 * torch.sin(call.x), X0)


def square_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    return tuple(noise_schedule.sigmas[-1] * (1 - step / steps) ** 2 for step in range(steps + 1))


# Ends in "Uniform", which is another schedule's name.
WITH_SQUARE = Registry(
    SOLVERS, {**SCHEDULES, "square_uniform": Schedule("Square Uniform", square_sigmas)}, REGISTRY.default
)


@pytest.mark.parametrize(
    "spelling",
    ["euler_square_uniform", "Euler Square Uniform", "EulerDiscrete SquareUniform", "K_EULER square uniform"],
)
def test_an_added_schedule_has_its_spellings_with_every_sampler(spelling: str) -> None:
    assert WITH_SQUARE.resolve(spelling, None) == ("euler", "square_uniform")
    assert WITH_SQUARE.resolve("Euler", "Square Uniform") == ("euler", "square_uniform")
    assert WITH_SQUARE.resolve("Euler Uniform", None) == ("euler", "default")
    assert WITH_SQUARE.is_schedule("Square Uniform") and not REGISTRY.is_schedule("Square Uniform")
    assert {"heun_square_uniform", "dpmpp_2m_square_uniform"} <= set(WITH_SQUARE.sampler_names())
    assert WITH_SQUARE.resolve(WITH_SQUARE.a1111_label("heun", "square_uniform"), None) == ("heun", "square_uniform")


def test_an_added_schedule_is_followed_by_every_solver_without_its_own_grid() -> None:
    for solver in WITH_SQUARE.solvers.values():
        assert ("square_uniform" in solver.schedules) == (solver.own_grid is None)
    assert WITH_SQUARE.solvers["euler"].grid("square_uniform", v1_schedule(), 4)[2] == v1_schedule().sigmas[-1] / 4
    # What a solver does to schedules, it does to this one.
    assert len(WITH_SQUARE.solvers["dpm2"].grid("square_uniform", v1_schedule(), 4)) == 5
    with pytest.raises(InvalidRequest, match="ddim has no schedule"):
        WITH_SQUARE.resolve("ddim", "square_uniform")


def ralston(x: Tensor, sigmas: Sigmas, noise: NoiseSource, fresh: float) -> Sampling:
    """Ralston's method, which looks at two thirds of a step, and a little noise at each step."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        slope, there = (x - x0) / sigma, sigma + (sigma_next - sigma) * 2 / 3
        ahead = x0 + slope * there
        slope_there = (ahead - (yield Call(ahead, there, step, call=1)).x0) / there
        x = x + (slope / 4 + slope_there * 3 / 4) * (sigma_next - sigma) + fresh * noise.draw()
    return x


RALSTON = Solver(
    "Ralston 2", ralston, calls=two_calls_a_step, a1111_schedule="karras", options={"fresh": 0.0}, aliases=("RK2",)
)


def test_an_added_solver_has_its_spellings_calls_and_options() -> None:
    registry = with_solver("ralston", RALSTON)
    assert registry.resolve("ralston", None) == ("ralston", "default")
    assert registry.resolve("Ralston 2", None) == ("ralston", "karras")
    assert registry.resolve("RK2Scheduler", None) == registry.resolve("k_rk2", None) == ("ralston", "default")
    solver = registry.solvers["ralston"]
    x, calls = run(solver, lambda _call: Prediction(X0, X0))
    torch.testing.assert_close(x, X0)
    assert [(call.step, call.call) for call in calls] == [(s, c) for s in range(4) for c in (0, 1)] + [(4, 0)]
    assert len(calls) == solver.calls(solver.grid("default", v1_schedule(), 5)) == 9
    by_default, none, some = (run(solver, tilted, options)[0] for options in ({}, {"fresh": 0.0}, {"fresh": 1.0}))
    assert torch.equal(by_default, none) and (some - none).abs().max() > 0.01
    assert solver.with_defaults({}) == {"fresh": 0.0}


def test_an_option_that_a_solver_does_not_have_is_refused_before_any_call() -> None:
    with pytest.raises(InvalidRequest, match="eta: sampler Ralston 2 has no such option; its options: fresh"):
        RALSTON.run(X0, (1.0, 0.0), CPUNoise(1, SHAPE, torch.device("cpu")), {"eta": 1.0})
    with pytest.raises(InvalidRequest, match="eta: sampler LMS has no such option; its options: none"):
        SOLVERS["lms"].with_defaults({"eta": 1.0})
