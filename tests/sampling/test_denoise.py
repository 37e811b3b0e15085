import pytest
import torch

from sd_core.errors import ModelError
from sd_core.sampling.denoise import Denoiser
from sd_core.sampling.schedule import v1_schedule

SHAPE = (1, 4, 3, 5)


def known(sigma: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean latents, their noise, and x = x0 + sigma * noise."""
    x0, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    return x0, noise, x0 + sigma * noise


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_x0_from_the_noise_itself(sigma: float) -> None:
    x0, noise, x = known(sigma)
    torch.testing.assert_close(Denoiser(v1_schedule(), "epsilon").x0(x, sigma, noise), x0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6, 4518.0])
def test_x0_from_v_itself_even_where_the_noise_is_4518_times_the_signal(sigma: float) -> None:
    x0, noise, x = known(sigma)
    alpha = 1 / (1 + sigma**2)
    v = alpha**0.5 * noise - (1 - alpha) ** 0.5 * x0
    denoiser = Denoiser(v1_schedule(zero_terminal_snr=True), "v_prediction")
    torch.testing.assert_close(denoiser.x0(x, sigma, v), x0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_output_in_half_precision_gives_float32(prediction_type: str) -> None:
    _, noise, x = known(14.6)
    denoiser = Denoiser(v1_schedule(), prediction_type)
    predicted = denoiser.x0(x, 14.6, noise.bfloat16())
    assert predicted.dtype == torch.float32
    assert torch.equal(predicted, denoiser.x0(x, 14.6, noise.bfloat16().float()))


def test_the_input_has_the_scale_that_the_unet_was_trained_on() -> None:
    x = torch.randn(SHAPE)
    torch.testing.assert_close(Denoiser(v1_schedule()).scaled(x, 3.0), x / 10**0.5)


def test_the_timestep_is_the_models_own() -> None:
    assert Denoiser(v1_schedule()).timestep(v1_schedule().sigmas[-1]) == pytest.approx(999)
    rescaled = v1_schedule(zero_terminal_snr=True)
    assert Denoiser(rescaled).timestep(rescaled.sigmas[500]) == pytest.approx(500)
    assert Denoiser(rescaled).timestep(v1_schedule().sigmas[500]) != pytest.approx(500, abs=0.1)


def test_an_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(ModelError, match="'sample' is not supported; known: epsilon, v_prediction"):
        Denoiser(v1_schedule(), "sample")
