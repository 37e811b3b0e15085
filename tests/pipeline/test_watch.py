import pytest
import torch
from torch import Tensor

from sd_core.pipeline.watch import watched
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import karras_sigmas
from sd_core.work import Sampling

SIGMAS = karras_sigmas(4)


class NoNoise:
    def draw(self) -> Tensor:
        return torch.zeros(1, 4, 2, 2)


def run(sampling: Sampling, x0: Tensor) -> Tensor:
    """Answers with the eps that leads to x0."""
    call = next(sampling)
    while True:
        eps = (call.latents * (1 + call.sigma**2) ** 0.5 - x0) / call.sigma
        try:
            call = sampling.send(eps)
        except StopIteration as stop:
            latents: Tensor = stop.value
            return latents


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun", "dpmpp_2m"])
def test_each_step_is_told_once_with_what_it_foresees(sampler: str) -> None:
    x, x0 = torch.randn(1, 4, 2, 2) * SIGMAS[0], torch.randn(1, 4, 2, 2)
    told: list[tuple[int, Tensor]] = []
    solver = SOLVERS[sampler].run
    end = run(watched(solver(x, SIGMAS, NoNoise()), lambda step, foresee: told.append((step, foresee()))), x0)
    assert [step for step, _ in told] == [1, 2, 3, 4]
    for _, foreseen in told:
        torch.testing.assert_close(foreseen, x0, rtol=1e-3, atol=1e-3)
    assert torch.equal(end, run(solver(x, SIGMAS, NoNoise()), x0))
