from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.pipeline.conditioning import Conditioning, Constant, Rows
from sd_core.pipeline.guidance import guided
from sd_core.sampling.denoise import Denoiser
from sd_core.sampling.schedule import v1_schedule
from sd_core.work import Call, Context, Prediction, Sampling, UNetWork
from tests.support.drive import drive

POSITIVE, NEGATIVE = Context("positive", torch.ones(1, 3, 2)), Context("negative", torch.zeros(1, 3, 2))
LATENTS = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
DENOISER = Denoiser(v1_schedule())
SIGMAS = (10.0, 0.3)
BOTH = Constant(POSITIVE, NEGATIVE)


def run(
    scale: float,
    answer: Tensor,
    *,
    reads_uncond: bool = False,
    denoiser: Denoiser = DENOISER,
    conditioning: Conditioning = BOTH,
) -> tuple[list[UNetWork], list[Prediction]]:
    """The works that a sampler of two calls leads to, and the predictions that it receives."""
    predictions: list[Prediction] = []

    def sampler() -> Sampling:
        for step, sigma in enumerate(SIGMAS):
            predictions.append((yield Call(LATENTS, sigma, step)))
        return LATENTS

    model: Any = SimpleNamespace(denoiser=denoiser, unet_key="unet")
    guiding = guided(sampler(), model, conditioning, scale, reads_uncond=reads_uncond)
    latents, works = drive(guiding, lambda _work: answer)
    assert torch.equal(latents, LATENTS)
    return works, predictions


def test_two_rows_are_joined_by_the_scale() -> None:
    negative, positive = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 3.0)
    works, predictions = run(7.5, torch.cat([negative, positive]))
    for work, prediction, sigma in zip(works, predictions, SIGMAS, strict=True):
        assert work.contexts == (NEGATIVE, POSITIVE) and work.image_of_row == (0, 0)
        assert torch.equal(work.latents, LATENTS / (1 + sigma**2) ** 0.5)
        assert work.timestep == v1_schedule().timestep(sigma)
        torch.testing.assert_close(prediction.x0, LATENTS - sigma * (negative + 7.5 * (positive - negative)))
        torch.testing.assert_close(prediction.x0_uncond, LATENTS - sigma * negative)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_without_guidance_there_is_one_row(scale: float) -> None:
    answer = torch.full((1, 4, 2, 2), 3.0)
    works, predictions = run(scale, answer)
    assert [work.contexts for work in works] == [(POSITIVE,)] * 2
    torch.testing.assert_close(predictions[0].x0, LATENTS - 10 * answer)
    assert torch.equal(predictions[0].x0_uncond, predictions[0].x0)


def test_a_sampler_that_reads_the_unconditional_prediction_always_has_both() -> None:
    negative, positive = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 3.0)
    works, predictions = run(1.0, torch.cat([negative, positive]), reads_uncond=True)
    assert [len(work.contexts) for work in works] == [2, 2]
    torch.testing.assert_close(predictions[0].x0, LATENTS - 10 * positive)
    torch.testing.assert_close(predictions[0].x0_uncond, LATENTS - 10 * negative)


def test_guidance_does_not_depend_on_the_prediction_type() -> None:
    """The guided prediction is that of the guided output: the weights of the two rows add up to one."""
    negative, positive = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(1)).unbind()
    denoiser = Denoiser(v1_schedule(), "v_prediction")
    _, (first, _) = run(5.0, torch.cat([negative, positive]), denoiser=denoiser)
    alone = [denoiser.x0(LATENTS, SIGMAS[0], output) for output in (negative, positive)]
    torch.testing.assert_close(first.x0, alone[0] + 5 * (alone[1] - alone[0]))


class Changing:
    """One prompt at the second step, and two with weights at the first."""

    def at(self, call: Call) -> Rows:
        if call.step == 1:
            return Rows(((NEGATIVE, 1.0),), POSITIVE)
        return Rows(((POSITIVE, 0.5), (NEGATIVE, -2.0)), NEGATIVE)


def test_prompts_may_change_at_every_step_and_carry_weights() -> None:
    outputs = torch.tensor([1.0, 4.0, 2.0])[:, None, None, None].expand(-1, 4, 2, 2)
    works, (first, _) = run(3.0, outputs, conditioning=Changing())
    assert [work.contexts for work in works] == [(NEGATIVE, POSITIVE, NEGATIVE), (POSITIVE, NEGATIVE)]
    joined = 1 + 3 * (0.5 * (4 - 1) - 2 * (2 - 1))
    torch.testing.assert_close(first.x0, LATENTS - 10.0 * joined)


def test_several_prompts_are_joined_without_guidance_too() -> None:
    outputs = torch.tensor([1.0, 4.0, 2.0])[:, None, None, None].expand(-1, 4, 2, 2)
    _, (first, _) = run(1.0, outputs, conditioning=Changing())
    torch.testing.assert_close(first.x0, LATENTS - 10.0 * (1 + 0.5 * (4 - 1) - 2 * (2 - 1)))
