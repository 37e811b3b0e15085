import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from sd_core.sampling.schedule import ZERO_SNR_ALPHA, NoiseSchedule, v1_schedule

V1 = v1_schedule()
HALF = NoiseSchedule(V1.alphas_cumprod[:500], V1.sigmas[:500], V1.log_sigmas[:500])
"""Another model's noise: v1's up to timestep 499."""


def test_the_trained_ends_of_the_schedule() -> None:
    assert len(V1.sigmas) == 1000
    # The values that every v1 tool prints: sigma_min 0.0292, sigma_max 14.6146, last alphas_cumprod 0.00466.
    assert V1.sigmas[0] == pytest.approx(0.0291675, rel=1e-4)
    assert V1.sigmas[-1] == pytest.approx(14.6146, rel=1e-5)
    assert V1.alphas_cumprod[-1] == pytest.approx(0.0046601, rel=1e-4)


def test_zero_terminal_snr_is_diffusers_rescaling_with_a_finite_end() -> None:
    rescaled = v1_schedule(zero_terminal_snr=True)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    assert expected[-1] == 0
    torch.testing.assert_close(
        torch.tensor(rescaled.alphas_cumprod[:-1], dtype=torch.float64), expected[:-1], rtol=1e-9, atol=0
    )
    assert rescaled.alphas_cumprod[-1] == ZERO_SNR_ALPHA
    assert rescaled.sigmas[-1] == pytest.approx(4518.77, rel=1e-5)
    assert rescaled.sigmas[0] == pytest.approx(V1.sigmas[0])


@pytest.mark.parametrize("timestep", [0, 0.25, 1, 333.0, 500.5, 998.75, 999])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_timestep_is_the_inverse_of_sigma(timestep: float, zero_terminal_snr: bool) -> None:
    schedule = v1_schedule(zero_terminal_snr=zero_terminal_snr)
    assert schedule.timestep(schedule.sigma(timestep)) == pytest.approx(timestep, abs=1e-6)


def test_timestep_stays_within_the_trained_ones() -> None:
    assert V1.timestep(1e-6) == 0
    assert V1.timestep(1e3) == 999
    assert HALF.timestep(1e3) == 499


def test_sigma_between_trained_timesteps_is_log_linear() -> None:
    assert V1.sigma(10.5) == pytest.approx(math.sqrt(V1.sigmas[10] * V1.sigmas[11]))
