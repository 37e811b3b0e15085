"""ControlNet beside diffusers' on the same random weights, float32 on the CPU."""

from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from sd_core.models.controlnet import ControlNet
from sd_core.models.given import Residuals
from sd_core.models.unet import UNet
from tests.support.controls import TINY_CONTROLNET, controlnet, random_controlnet, random_hint
from tests.support.networks import tiny_networks
from tests.support.random_weights import TINY, random_state_dict
from tests.support.reference import reference_controlnet, reference_unet

TOLERANCE = 1e-4
TIMES = torch.tensor([981.0, 421.0, 3.0])


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_state_dict(TINY)


@pytest.fixture(scope="module")
def unet(weights: dict[str, Tensor]) -> UNet:
    return tiny_networks(weights)[1]


@pytest.fixture(scope="module")
def network() -> ControlNet:
    return controlnet()


@pytest.fixture(scope="module")
def reference() -> ControlNetModel:
    return reference_controlnet(random_controlnet(), TINY_CONTROLNET)


def inputs(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, height, width, generator=generator)
    states = torch.randn(3, 77, TINY.unet.context_dim, generator=generator)
    return latents, states, torch.cat([random_hint(8 * height, 8 * width, seed) for seed in range(3)])


def difference(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@torch.inference_mode()
@pytest.mark.parametrize("size", [(8, 8), (17, 9)], ids=str)
def test_the_residuals(network: ControlNet, reference: ControlNetModel, size: tuple[int, int]) -> None:
    latents, states, hint = inputs(*size)
    ours = network(latents, TIMES, network.embed(hint), network.given(states))
    skips, middle = reference(latents, TIMES, states, hint, return_dict=False)
    assert max(map(difference, ours, [*skips, middle])) <= TOLERANCE
    without = network(latents, TIMES, torch.zeros_like(network.embed(hint)), network.given(states))
    assert max(map(difference, without, ours)) > 100 * TOLERANCE


@torch.inference_mode()
def test_a_controlled_unet(
    weights: dict[str, Tensor], unet: UNet, network: ControlNet, reference: ControlNetModel
) -> None:
    latents, states, hint = inputs()
    prefix = "model.diffusion_model."
    own = {name: each.clone() for name, each in weights.items() if name.startswith(prefix)}
    reference_of_unet: UNet2DConditionModel = reference_unet(own, TINY.unet)
    skips, middle = reference(latents, TIMES, states, hint, return_dict=False)
    expected = reference_of_unet(
        latents,
        TIMES,
        states,
        down_block_additional_residuals=skips,
        mid_block_additional_residual=middle,
    ).sample
    residuals = network(latents, TIMES, network.embed(hint), network.given(states))
    given = replace(unet.given(states), control=(Residuals(residuals),))
    assert difference(unet(latents, TIMES, given), expected) <= TOLERANCE
    assert difference(unet(latents, TIMES, unet.given(states)), expected) > 100 * TOLERANCE
