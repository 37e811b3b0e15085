"""Every schedule beside known answers of the tools that have it, and beside k-diffusion and SciPy."""

import numpy as np
import pytest
import torch
from scipy.stats import beta  # type: ignore[import-untyped]

from sd_core.sampling.registry import SCHEDULES, SOLVERS
from sd_core.sampling.schedule import NoiseSchedule, SigmasOf, v1_schedule
from sd_core.sampling.spacing import (
    beta_sigmas,
    ddim_sigmas,
    ddim_uniform_sigmas,
    ddpm_sigmas,
    karras_sigmas,
    lcm_sigmas,
    simple_sigmas,
    tcd_sigmas,
    turbo_sigmas,
    uniform_sigmas,
)
from tests.support.k_diffusion import k_diffusion

V1 = v1_schedule()
HALF = NoiseSchedule(V1.alphas_cumprod[:500], V1.sigmas[:500], V1.log_sigmas[:500])
"""Another model's noise: v1's up to timestep 499."""

# Ten steps with v1.5, as AUTOMATIC1111, Forge and ComfyUI print them.
KNOWN = {
    "default": [14.6146, 7.8399, 4.6092, 2.9183, 1.9502, 1.3449, 0.9324, 0.6250, 0.3687, 0.0292, 0],
    "karras": [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292, 0],
    "exponential": [14.6146, 7.3249, 3.6712, 1.8400, 0.9222, 0.4622, 0.2317, 0.1161, 0.0582, 0.0292, 0],
    "polyexponential": [14.6146, 7.3249, 3.6712, 1.8400, 0.9222, 0.4622, 0.2317, 0.1161, 0.0582, 0.0292, 0],
    "sgm_uniform": [14.6146, 8.3072, 5.0924, 3.3251, 2.2797, 1.6156, 1.1629, 0.8319, 0.5712, 0.3437, 0],
    "simple": [14.6146, 8.3028, 5.0878, 3.3211, 2.2765, 1.6129, 1.1606, 0.8299, 0.5693, 0.3417, 0],
    "ddim_uniform": [8.3907, 5.1344, 3.3478, 2.2929, 1.6237, 1.1682, 0.8357, 0.5741, 0.3462, 0.0413, 0],
    "beta": [14.6146, 11.5428, 7.3718, 4.3728, 2.6152, 1.6183, 1.0273, 0.6549, 0.3955, 0.1991, 0],
    "kl_optimal": [14.6146, 4.2324, 2.3937, 1.5971, 1.1330, 0.8152, 0.5729, 0.3725, 0.1953, 0.0292, 0],
    "ays": [14.6150, 6.1135, 3.5651, 2.3939, 1.6500, 1.1358, 0.7425, 0.4450, 0.1692, 0.0290, 0],
    "ays_gits": [14.6150, 4.3141, 2.1424, 1.0236, 0.5479, 0.3018, 0.1801, 0.1138, 0.0951, 0.0290, 0],
    "turbo": [14.6146, 8.3028, 5.0878, 3.3211, 2.2765, 1.6129, 1.1606, 0.8299, 0.5693, 0.3417, 0],
    "linear_quadratic": [14.6146, 14.5416, 14.4685, 14.3954, 14.3223, 14.2493, 13.6208, 11.8817, 9.0318, 5.0713, 0],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ten_steps_of_every_schedule(schedule: str) -> None:
    assert SCHEDULES[schedule].sigmas(V1, 10) == pytest.approx(KNOWN[schedule], abs=6e-5)


@pytest.mark.parametrize("steps", [1, 2, 10, 25, 150])
@pytest.mark.parametrize("schedule", ["karras", "exponential", "polyexponential"])
def test_spacing_between_the_ends_is_that_of_k_diffusion(schedule: str, steps: int) -> None:
    expected = getattr(k_diffusion, f"get_sigmas_{schedule}")(steps, V1.sigmas[0], V1.sigmas[-1])
    assert SCHEDULES[schedule].sigmas(V1, steps) == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("steps", [*range(1, 60), 150])
def test_beta_has_the_quantiles_of_scipy(steps: int) -> None:
    timesteps = np.rint(beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6) * 999)
    expected = [V1.sigmas[int(timestep)] for timestep in dict.fromkeys(timesteps.tolist())]
    assert beta_sigmas(V1, steps) == (*expected, 0.0)


def test_lengths_that_differ_from_the_number_of_steps() -> None:
    assert [len(ddim_uniform_sigmas(V1, steps)) - 1 for steps in (10, 15, 20, 30, 150)] == [10, 16, 20, 31, 167]
    assert len(beta_sigmas(V1, 150)) - 1 < 150


def test_turbo_visits_the_same_timesteps_as_torchs_rounding() -> None:
    assert turbo_sigmas(V1, 4) == pytest.approx([14.6146, 4.0817, 1.6129, 0.6932, 0], abs=6e-5)
    for steps in range(1, 151):
        timesteps = torch.flip(torch.arange(1, steps + 1) * float(1000.0 / steps) - 1, (0,)).round().long().clip(0, 999)
        assert turbo_sigmas(V1, steps) == (*(V1.sigmas[timestep] for timestep in timesteps.tolist()), 0.0)


def test_ays_with_as_many_steps_as_the_table_has_levels_is_the_table() -> None:
    table = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029, 0]
    assert SCHEDULES["ays"].sigmas(V1, 11) == pytest.approx(table)
    table = [14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029, 0]
    assert SCHEDULES["ays_gits"].sigmas(V1, 11) == pytest.approx(table)


@pytest.mark.parametrize("name", ["dpm2", "dpm2_a", "dpmpp_3m_sde"])
def test_the_next_to_last_level_is_discarded(name: str) -> None:
    eleven = karras_sigmas(V1, 11)
    assert SOLVERS[name].grid("karras", V1, 10) == (*eleven[:10], 0.0)
    assert SOLVERS["heun"].grid("karras", V1, 10) == karras_sigmas(V1, 10)


def test_consistency_models_choose_from_fifty_timesteps() -> None:
    def timesteps(name: str, steps: int, strength: float | None = None) -> list[float]:
        return [V1.timestep(sigma) for sigma in SOLVERS[name].grid("default", V1, steps, strength)[:-1]]

    for name in ("lcm", "tcd"):
        assert timesteps(name, 4) == pytest.approx([999, 759, 499, 259], abs=1e-6)
        assert timesteps(name, 8) == pytest.approx([999, 879, 759, 639, 499, 379, 259, 139], abs=1e-6)
        # With an image, they are cut first, and all steps are done.
        assert timesteps(name, 4, 0.5) == pytest.approx([499, 379, 259, 139], abs=1e-6)
    assert lcm_sigmas(V1, 4)[-1] == SOLVERS["lcm"].grid("default", V1, 4, 0.5)[-1] == 0
    assert tcd_sigmas(V1, 4)[-1] == SOLVERS["tcd"].grid("default", V1, 4, 0.5)[-1] == V1.sigmas[0]


def test_uniform_visits_unrounded_timesteps() -> None:
    timesteps = [V1.timestep(sigma) for sigma in uniform_sigmas(V1, 4)[:-1]]
    assert timesteps == pytest.approx([999, 666, 333, 0], abs=1e-6)
    assert uniform_sigmas(V1, 4)[-1] == 0


@pytest.mark.parametrize("noise_schedule", [V1, HALF], ids=["v1", "half"])
def test_karras_follows_the_papers_formula(noise_schedule: NoiseSchedule) -> None:
    low, high = noise_schedule.sigmas[0], noise_schedule.sigmas[-1]
    expected = [(high ** (1 / 7) + i / 4 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(5)]
    assert karras_sigmas(noise_schedule, 5) == pytest.approx([*expected, 0])


def test_leading_spacing_has_offset_one_and_its_own_end() -> None:
    timesteps = [V1.timestep(sigma) for sigma in ddim_sigmas(V1, 4)]
    assert timesteps == pytest.approx([751, 501, 251, 1, 0], abs=1e-6)
    assert ddim_sigmas(V1, 4)[-1] == V1.sigmas[0]
    assert ddpm_sigmas(V1, 4)[:-1] == ddim_sigmas(V1, 4)[:-1]
    assert ddpm_sigmas(V1, 4)[-1] == 0


@pytest.mark.parametrize(
    ("sigmas_of", "timesteps"),
    [
        (uniform_sigmas, [499, 499 * 2 / 3, 499 / 3, 0]),
        (ddpm_sigmas, [376, 251, 126, 1]),
        (ddim_sigmas, [376, 251, 126, 1]),
        (simple_sigmas, [499, 374, 249, 124]),
        (lcm_sigmas, [499, 379, 249, 129]),
    ],
)
def test_noise_levels_are_those_of_the_model_that_is_given(sigmas_of: SigmasOf, timesteps: list[float]) -> None:
    assert [HALF.timestep(sigma) for sigma in sigmas_of(HALF, 4)[:4]] == pytest.approx(timesteps, abs=0.01)
