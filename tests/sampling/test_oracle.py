"""Every registered sampler, asked to denoise towards known latents by a model that is always right."""

from itertools import pairwise

import pytest
import torch

from sd_core.errors import InvalidRequest
from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import NoiseSchedule, v1_schedule
from sd_core.work import Call, Prediction
from tests.support.drive import drive

SHAPE = (1, 4, 6, 10)
CPU = torch.device("cpu")
EVERY_SAMPLER = [(name, schedule) for name, solver in SOLVERS.items() for schedule in solver.schedules]
LIMITED = {"lcm": 50, "tcd": 50}  # samplers that know no more steps
NOISE_SCHEDULES = [v1_schedule(), v1_schedule(zero_terminal_snr=True)]


@pytest.mark.parametrize("noise_schedule", NOISE_SCHEDULES, ids=["v1", "zero_terminal_snr"])
@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
def test_reaches_the_final_noise_level(noise_schedule: NoiseSchedule, name: str, schedule: str) -> None:
    for steps, strength in [(1, None), (2, None), (7, None), (7, 1.0), (2, 0.4), (7, 0.4), (40, None)]:
        solver = SOLVERS[name]
        sigmas = solver.grid(schedule, noise_schedule, steps, strength)
        # Small steps before a large one multiply rounding there, whatever the model.
        dtype = torch.float64 if (name, schedule) == ("lms", "linear_quadratic") else torch.float32
        x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=dtype)
        noise = CPUNoise(2, SHAPE, CPU, span=(noise_schedule.sigmas[0], sigmas[0]))
        start = solver.noised(None if strength is None else x0, noise.initial(), sigmas[0])
        # The noise that is left above sigma 0 is known where none is added on the way.
        options = {"eta": 0.0} if sigmas[-1] > 0 and "eta" in solver.options else {}
        sampling = solver.run(start, sigmas, noise, options, noise_schedule)
        x, calls = drive(sampling, lambda call, x0=x0: Prediction(x0, x0))  # type: ignore[misc] # bound now
        assert torch.equal(calls[0].x, start) or torch.allclose(calls[0].x, start, rtol=1e-6)
        # If the grid does not end at sigma 0, the noise that is left is the noise in the first call's x.
        final = sigmas[-1]
        expected = (x0 + final * (calls[0].x - x0) / calls[0].sigma) / (1 + final**2) ** 0.5
        assert torch.allclose(x, expected.to(x.dtype), rtol=1e-4, atol=1e-4), (steps, strength)


@pytest.mark.parametrize("name", LIMITED)
@pytest.mark.parametrize(("steps", "strength"), [(51, None), (150, None), (8, 0.15), (1, 0.01)])
def test_more_steps_than_there_are_are_refused(name: str, steps: int, strength: float | None) -> None:
    with pytest.raises(
        InvalidRequest, match=f"steps: {steps} is too many, this sampler has {int(50 * (strength or 1))}"
    ):
        SOLVERS[name].grid("default", v1_schedule(), steps, strength)


@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
def test_calls_are_as_many_as_declared_and_numbered(name: str, schedule: str) -> None:
    solver = SOLVERS[name]
    grids = [solver.grid(schedule, v1_schedule(), steps) for steps in (1, 2, 7, 25)]
    for visited in (*grids, *(sigmas[:-1] for sigmas in grids[1:-1])):  # grids that end above sigma 0 too
        noise = CPUNoise(2, SHAPE, CPU)
        _, calls = drive(
            solver.run(solver.noised(None, noise.initial(), visited[0]), visited, noise),
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
        for steps in (1, 2, 3, 20, min(150, LIMITED.get(name, 150))):
            sigmas = SOLVERS[name].grid(schedule, noise_schedule, steps)
            if schedule not in ("ddim_uniform", "beta"):  # the first may be longer, the second shorter
                assert len(sigmas) == steps + 1
            assert all(high > low >= 0 for high, low in pairwise(sigmas))


@pytest.mark.parametrize(("name", "schedule"), [each for each in EVERY_SAMPLER if each[0] not in LIMITED])
def test_strength_keeps_the_last_steps(name: str, schedule: str) -> None:
    solver = SOLVERS[name]
    for steps, strength in [(10, 0.8), (10, 1.0), (10, 0.01), (25, 0.5), (10, 0.69), (1, 0.3)]:
        whole = solver.grid(schedule, v1_schedule(), steps)
        kept = max(1, int((len(whole) - 1) * strength))
        assert solver.grid(schedule, v1_schedule(), steps, strength) == whole[-kept - 1 :]
    assert len(SOLVERS["euler"].grid("karras", v1_schedule(), 25, 0.5)) == 12 + 1


@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
def test_x_is_not_changed_in_place(name: str, schedule: str) -> None:
    solver = SOLVERS[name]
    sigmas = solver.grid(schedule, v1_schedule(), 5)
    noise = CPUNoise(2, SHAPE, CPU)
    x = solver.noised(None, noise.initial(), sigmas[0])
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
    expected = 5**0.5 if name in ("ddpm", "ddim", "plms", "lcm", "tcd") else 2.0
    torch.testing.assert_close(solver.noised(None, noise, 2.0), noise * expected)
    torch.testing.assert_close(solver.noised(latents, noise, 2.0), torch.full(SHAPE, 5.0))


class CountedNoise(CPUNoise):
    """Notes the intervals of the Brownian path that are asked for."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type] # passed on as they are
        self.asked: list[tuple[float, float]] = []

    def between(self, sigma: float, sigma_next: float) -> torch.Tensor:
        self.asked.append((sigma, sigma_next))
        return super().between(sigma, sigma_next)


@pytest.mark.parametrize(("name", "schedule"), EVERY_SAMPLER)
def test_intervals_are_asked_for_as_declared_one_after_each_call(name: str, schedule: str) -> None:
    solver = SOLVERS[name]
    for steps in (1, 2, 7):
        sigmas = solver.grid(schedule, v1_schedule(), steps)
        noise = CountedNoise(2, SHAPE, CPU)
        counts: list[int] = []

        def answer(call: Call, noise: CountedNoise = noise, counts: list[int] = counts) -> Prediction:
            counts.append(len(noise.asked))
            return Prediction(call.x * 0, call.x * 0)

        drive(solver.run(solver.noised(None, noise.initial(), sigmas[0]), sigmas, noise), answer)
        assert noise.asked == list(solver.intervals(sigmas))
        assert all(after - before <= 1 for before, after in pairwise([*counts, len(noise.asked)]))
