import pytest
import torch

from sd_core.models.unet import UNet
from tests.support.random_weights import TINY

CONTEXT = TINY.unet.context_dim


@pytest.mark.parametrize("height", [8, 9, 15])
@pytest.mark.parametrize("width", [1, 12, 17])
def test_any_size_comes_back(unet: UNet, height: int, width: int) -> None:
    eps = unet(torch.randn(1, 4, height, width), torch.tensor([500.0]), torch.randn(1, 77, CONTEXT))
    assert eps.shape == (1, 4, height, width)
    assert eps.isfinite().all()


def test_rows_know_nothing_of_each_other(unet: UNet) -> None:
    """A row alone equals the same row beside others that are at other timesteps with other prompts."""
    latents, context = torch.randn(3, 4, 8, 8), torch.randn(3, 77, CONTEXT)
    timesteps = torch.tensor([999.0, 421.37, 0.0])
    together = unet(latents, timesteps, context)
    for row in range(3):
        alone = unet(latents[row : row + 1], timesteps[row : row + 1], context[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("argument", ["latents", "timesteps", "context"])
def test_eps_depends_on_every_argument(unet: UNet, argument: str) -> None:
    given = {
        "latents": torch.randn(1, 4, 8, 8),
        "timesteps": torch.tensor([500.0]),
        "context": torch.randn(1, 77, CONTEXT),
    }
    other = {**given, argument: given[argument] + 1}
    assert (unet(*given.values()) - unet(*other.values())).abs().max() > 0.01


def test_half_precision_weights_keep_float32_latents_and_timesteps(unet: UNet) -> None:
    """In bfloat16, timesteps 998 and 1000 would be one number and 999 none."""
    unet.to(torch.bfloat16)
    latents, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, CONTEXT)
    near, far = (unet(latents, torch.tensor([timestep]), context) for timestep in (999.0, 1000.0))
    assert near.dtype == torch.float32
    assert not torch.equal(near, far)


def test_half_precision_is_near_full_precision(unet: UNet) -> None:
    arguments = torch.randn(2, 4, 8, 8), torch.tensor([999.0, 17.0]), torch.randn(2, 77, CONTEXT)
    full = unet(*arguments)
    error = unet.to(torch.bfloat16)(*arguments) - full
    assert 0 < error.std() < 0.1 * full.std()


def test_an_argument_is_not_changed(unet: UNet) -> None:
    arguments = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, CONTEXT)
    copies = [argument.clone() for argument in arguments]
    unet(*arguments)
    assert all(torch.equal(argument, copy) for argument, copy in zip(arguments, copies, strict=True))


def test_prompts_of_one_picture_share_what_comes_before_them(unet: UNet) -> None:
    """Two guided pictures and one without guidance between them, beside the same rows written out."""
    latents, context = torch.randn(3, 4, 9, 7), torch.randn(5, 77, CONTEXT)
    timesteps, rows = torch.tensor([999.0, 421.37, 3.0]), torch.tensor([0, 0, 1, 2, 2])
    shared = unet(latents, timesteps, unet.read(context, rows))
    torch.testing.assert_close(shared, unet(latents[rows], timesteps[rows], context), rtol=1e-4, atol=1e-4)


def test_what_was_read_of_prompts_serves_every_step(unet: UNet) -> None:
    context = torch.randn(2, 77, CONTEXT)
    contexts = unet.read(context)
    for timestep in (900.0, 20.0):
        latents, timesteps = torch.randn(2, 4, 8, 8), torch.full((2,), timestep)
        assert torch.equal(unet(latents, timesteps, contexts), unet(latents, timesteps, context))
