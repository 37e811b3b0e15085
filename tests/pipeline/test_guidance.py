import pytest
import torch
from torch import Tensor

from sd_core.pipeline.guidance import guided
from sd_core.work import Conditioning, Sampling, UNetCall, UNetRows

CONDITIONING = Conditioning(positive=torch.ones(1, 3, 2), negative=torch.zeros(1, 3, 2))
LATENTS = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def two_calls() -> Sampling:
    first = yield UNetCall(LATENTS, 900.0, 10.0, 0)
    second = yield UNetCall(first, 100.0, 0.3, 1)
    return second


def run(scale: float, answers: list[Tensor]) -> tuple[list[UNetRows], Tensor]:
    sampling = guided(two_calls(), CONDITIONING, scale)
    rows, queue = [next(sampling)], list(answers)
    while True:
        try:
            rows.append(sampling.send(queue.pop(0)))
        except StopIteration as stop:
            return rows, stop.value


def test_two_rows_joined_by_the_scale() -> None:
    negative, positive = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 3.0)
    rows, end = run(7.5, [torch.cat([negative, positive])] * 2)
    assert [len(row.context) for row in rows] == [2, 2]
    assert torch.equal(rows[0].context[0], CONDITIONING.negative[0])
    assert torch.equal(rows[0].context[1], CONDITIONING.positive[0])
    assert rows[0].timestep == 900 and rows[1].timestep == 100
    assert torch.equal(rows[1].latents, negative + 7.5 * (positive - negative))
    assert torch.equal(end, rows[1].latents)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_one_row_without_guidance(scale: float) -> None:
    answer = torch.full((1, 4, 2, 2), 3.0)
    rows, end = run(scale, [answer] * 2)
    assert [len(row.context) for row in rows] == [1, 1]
    assert torch.equal(rows[0].context, CONDITIONING.positive)
    assert torch.equal(end, answer)
