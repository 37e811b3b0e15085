"""What departs from the plain UNet, beside diffusers on the same random weights, float32 on the CPU."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from sd_core.models.given import FreeU, Given
from sd_core.models.unet import UNet
from tests.support.networks import tiny_networks
from tests.support.random_weights import TINY, random_state_dict
from tests.support.reference import reference_unet

TOLERANCE = 1e-4
TIMES = torch.tensor([981.0, 421.0, 3.0])


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_state_dict(TINY)


@pytest.fixture
def unet(weights: dict[str, Tensor]) -> UNet:
    return tiny_networks(weights)[1]


@pytest.fixture
def reference(weights: dict[str, Tensor]) -> UNet2DConditionModel:
    prefix = "model.diffusion_model."
    own = {name: each.clone() for name, each in weights.items() if name.startswith(prefix)}
    return reference_unet(own, TINY.unet)


def inputs(height: int = 8, width: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, height, width, generator=generator)
    return latents, torch.randn(3, 77, TINY.unet.context_dim, generator=generator)


def difference(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@torch.inference_mode()
@pytest.mark.parametrize("size", [(8, 8), (17, 9), (8, 24)], ids=str)
def test_freeu(unet: UNet, reference: UNet2DConditionModel, size: tuple[int, int]) -> None:
    latents, states = inputs(*size)
    plain = unet.given(states)
    before = reference(latents, TIMES, states).sample
    reference.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    expected = reference(latents, TIMES, states).sample
    freeu = FreeU(torch.arange(3), torch.tensor([[1.5, 1.6, 0.9, 0.2]] * 3))
    assert difference(unet(latents, TIMES, Given(plain.keys_values, freeu=freeu)), expected) <= TOLERANCE
    assert difference(before, expected) > 100 * TOLERANCE

    # Rows with and without, and with other factors, share a forward.
    mixed = FreeU(torch.tensor([0, 2]), torch.tensor([[1.5, 1.6, 0.9, 0.2], [1.0, 1.0, 1.0, 1.0]]))
    output = unet(latents, TIMES, Given(plain.keys_values, freeu=mixed))
    assert difference(output[:1], expected[:1]) <= TOLERANCE
    assert difference(output[1:], before[1:]) <= TOLERANCE


@torch.inference_mode()
def test_perturbed_self_attention_in_the_middle_block(unet: UNet, reference: UNet2DConditionModel) -> None:
    latents, states = inputs(32, 24)
    plain = unet.given(states)
    before = reference(latents, TIMES, states).sample
    rows = torch.tensor([2, 0])
    output = unet(latents, TIMES, Given(plain.keys_values, identity={unet.middle_attention: rows}))
    # diffusers' processor takes a batch whose second half is perturbed.
    doubled = [torch.cat([each, each]) for each in (latents, TIMES, states)]
    (name,) = (name for name in reference.attn_processors if name.startswith("mid") and "attn1" in name)
    reference.get_submodule(name.removesuffix(".processor")).processor = PAGIdentitySelfAttnProcessor2_0()
    perturbed = reference(*doubled).sample[3:]
    assert difference(output[rows], perturbed[rows]) <= TOLERANCE
    assert difference(output[1:2], before[1:2]) <= TOLERANCE
    assert difference(before, perturbed) > 100 * TOLERANCE


def test_the_rescaled_deviation() -> None:
    """diffusers' formula, which the tests of guidance write out."""
    guided, prompt = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    ours = guided * (0.7 * prompt.std() / guided.std() + 0.3)
    torch.testing.assert_close(ours, rescale_noise_cfg(guided, prompt, 0.7))
