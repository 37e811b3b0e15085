import pytest
import torch
from torch import Tensor

from sd_core.pipeline.watch import watched
from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import v1_schedule
from sd_core.work import Prediction
from tests.support.drive import drive

SHAPE = (1, 4, 2, 2)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_each_step_is_reported_once_with_its_prediction(sampler: str) -> None:
    solver = SOLVERS[sampler]
    sigmas = solver.grid("default", v1_schedule(), 4)
    x, x0 = torch.randn(SHAPE) * sigmas[0], torch.randn(SHAPE)
    reported: list[tuple[int, int, Tensor]] = []

    def run(*, watch: bool) -> Tensor:
        sampling = solver.run(x, sigmas, CPUNoise(0, SHAPE, torch.device("cpu")), solver.options)
        if watch:
            sampling = watched(sampling, lambda *report: reported.append(report))
        return drive(sampling, lambda _call: Prediction(x0, x0))[0]

    assert torch.equal(run(watch=True), run(watch=False))
    assert [step for step, _, _ in reported] == [1, 2, 3, 4]
    assert reported[-1][1] == solver.calls(sigmas)
    assert all(torch.equal(predicted, x0) for _, _, predicted in reported)
