from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.nested import FreeU
from sd_core.pipeline.conditioning import Conditioning, Constant, Rows
from sd_core.pipeline.guidance import Guiding, guided
from sd_core.request import Request
from sd_core.sampling.denoise import Denoiser
from sd_core.sampling.schedule import v1_schedule
from sd_core.work import Call, Context, Extras, Prediction, Sampling, UNetWork
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

    model: Any = SimpleNamespace(takes_image=False, denoiser=denoiser, unet_key="unet")
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


def run_steps(
    guiding: Guiding, steps: int, *, scale: float = 3.0, conditioning: Conditioning = BOTH, reads_uncond: bool = False
) -> tuple[list[UNetWork], list[Prediction]]:
    """What a sampler of `steps` steps makes the network see; row i of every output is OUTPUTS[i]."""
    predictions: list[Prediction] = []

    def sampler() -> Sampling:
        for step in range(steps):
            predictions.append((yield Call(LATENTS, 2.0, step)))
        return LATENTS

    def network(work: UNetWork) -> Any:
        output = OUTPUTS[: len(work.contexts)]
        return (output, torch.full((len(output), 8, 2, 2), 7.0)) if work.keeps_deep else output

    model: Any = SimpleNamespace(takes_image=False, denoiser=DENOISER, unet_key="unet")
    guiding_run = guided(sampler(), model, conditioning, scale, reads_uncond=reads_uncond, guiding=guiding, steps=steps)
    _, works = drive(guiding_run, network)
    return works, predictions


OUTPUTS = torch.randn(5, 4, 2, 2, generator=torch.Generator().manual_seed(5))
UNCOND, COND, PERTURBED = OUTPUTS[:1], OUTPUTS[1:2], OUTPUTS[2:3]


def test_outside_its_part_of_the_steps_guidance_takes_one_row() -> None:
    works, predictions = run_steps(Guiding(start=0.2, end=0.7), 10)
    assert [len(work.contexts) for work in works] == [1, 1, 2, 2, 2, 2, 2, 1, 1, 1]
    torch.testing.assert_close(predictions[2].x0, LATENTS - 2 * (UNCOND + 3 * (COND - UNCOND)))
    assert works[0].contexts == (POSITIVE,) and torch.equal(predictions[0].x0, predictions[0].x0_uncond)
    everywhere, _ = run_steps(Guiding(), 10)
    assert {len(work.contexts) for work in everywhere} == {2}


def test_outside_it_a_sampler_that_reads_both_still_has_both() -> None:
    works, (first, *_) = run_steps(Guiding(start=0.5), 2, reads_uncond=True)
    assert [len(work.contexts) for work in works] == [2, 2]
    torch.testing.assert_close(first.x0, LATENTS - 2 * COND)
    torch.testing.assert_close(first.x0_uncond, LATENTS - 2 * UNCOND)


def test_rescaling_brings_back_the_deviation_of_the_prompts_own() -> None:
    _, (prediction,) = run_steps(Guiding(rescale=0.7), 1)
    guided_output = UNCOND + 3 * (COND - UNCOND)
    rescaled = 0.7 * guided_output * (COND.std() / guided_output.std()) + 0.3 * guided_output
    torch.testing.assert_close(prediction.x0, LATENTS - 2 * rescaled)
    _, (alone,) = run_steps(Guiding(rescale=0.7), 1, scale=1.0)
    assert torch.equal(alone.x0, LATENTS - 2 * OUTPUTS[:1]), "without guidance there is nothing to rescale"


def test_perturbed_attention_takes_a_row_more() -> None:
    (work,), (prediction,) = run_steps(Guiding(pag_scale=2.0), 1)
    assert work.contexts == (NEGATIVE, POSITIVE, POSITIVE) and work.perturbed == (2,)
    expected = UNCOND + 3 * (COND - UNCOND) + 2 * (COND - PERTURBED)
    torch.testing.assert_close(prediction.x0, LATENTS - 2 * expected)
    torch.testing.assert_close(prediction.x0_uncond, LATENTS - 2 * UNCOND)


def test_perturbed_attention_without_guidance() -> None:
    """diffusers: the prompt's own, pushed away from the perturbed."""
    (work,), (prediction,) = run_steps(Guiding(pag_scale=2.0), 1, scale=1.0)
    assert work.contexts == (POSITIVE, POSITIVE) and work.perturbed == (1,)
    torch.testing.assert_close(prediction.x0, LATENTS - 2 * (UNCOND + 2 * (UNCOND - COND)))


def test_each_of_several_prompts_is_perturbed_by_its_weight() -> None:
    works, (first, _) = run_steps(Guiding(pag_scale=2.0), 2, conditioning=Changing())
    assert works[0].contexts == (NEGATIVE, POSITIVE, NEGATIVE, POSITIVE, NEGATIVE) and works[0].perturbed == (3, 4)
    uncond, one, two, one_perturbed, two_perturbed = OUTPUTS.unbind()
    expected = uncond + 3 * (0.5 * (one - uncond) - 2 * (two - uncond))
    expected = expected + 2 * (0.5 * (one - one_perturbed) - 2 * (two - two_perturbed))
    torch.testing.assert_close(first.x0, LATENTS - 2 * expected[None])


def test_between_whole_steps_the_outermost_block_runs_on_the_kept_features() -> None:
    works, predictions = run_steps(Guiding(deepcache=3), 7)
    assert [work.keeps_deep for work in works] == [True, False, False, True, False, False, True]
    assert [work.deep is not None for work in works] == [False, True, True, False, True, True, False]
    assert works[1].deep is not None and (works[1].deep == 7).all() and len(works[1].deep) == 2
    assert len(predictions) == 7
    plain, _ = run_steps(Guiding(deepcache=1), 3)
    assert not any(work.keeps_deep for work in plain) and all(work.deep is None for work in plain)


def test_features_of_other_rows_are_not_used() -> None:
    """Where the window of guidance ends, or a prompt changes, the whole network runs again."""
    works, _ = run_steps(Guiding(deepcache=5, end=0.5), 6)
    assert [work.deep is not None for work in works] == [False, True, True, False, True, False]
    changing, _ = run_steps(Guiding(deepcache=5), 2, conditioning=Changing())
    assert [work.deep is not None for work in changing] == [False, False]


def test_a_job_says_what_its_guidance_does() -> None:
    request = Request("p", seed=1, width=64, height=64, freeu=FreeU(b1=1.1), tiling=True, tome_ratio=0.5, pag_scale=2.0)
    guiding = Guiding.of(replace(request, guidance_start=0.1, guidance_end=0.9, guidance_rescale=0.3, deepcache=2))
    extras = Extras(tiling=True, freeu=(1.1, 1.6, 0.9, 0.2), tome_ratio=0.5)
    assert guiding == Guiding(0.3, 2.0, 0.1, 0.9, 2, extras)
    works, _ = run_steps(guiding, 1)
    assert works[0].extras == extras
