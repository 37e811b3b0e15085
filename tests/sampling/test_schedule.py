import math

import pytest

from sd_core.sampling.schedule import (
    ddim_sigmas,
    ddpm_sigmas,
    karras_sigmas,
    tail,
    uniform_sigmas,
    v1_schedule,
)


def test_the_trained_ends_of_the_schedule() -> None:
    schedule = v1_schedule()
    assert len(schedule.sigmas) == 1000
    # The values that every v1 tool prints: sigma_min 0.0292, sigma_max 14.6146, last alphas_cumprod 0.00466.
    assert schedule.sigmas[0] == pytest.approx(0.0291675, rel=1e-4)
    assert schedule.sigmas[-1] == pytest.approx(14.6146, rel=1e-5)
    assert schedule.alphas_cumprod[-1] == pytest.approx(0.0046601, rel=1e-4)


@pytest.mark.parametrize("timestep", [0, 0.25, 1, 333.0, 500.5, 998.75, 999])
def test_timestep_is_the_inverse_of_sigma(timestep: float) -> None:
    schedule = v1_schedule()
    assert schedule.timestep(schedule.sigma(timestep)) == pytest.approx(timestep, abs=1e-6)


def test_timestep_stays_within_what_was_trained() -> None:
    assert v1_schedule().timestep(1e-6) == 0
    assert v1_schedule().timestep(1e3) == 999


def test_sigma_between_trained_timesteps_is_log_linear() -> None:
    schedule = v1_schedule()
    assert schedule.sigma(10.5) == pytest.approx(math.sqrt(schedule.sigmas[10] * schedule.sigmas[11]))


def test_uniform_visits_unrounded_timesteps() -> None:
    timesteps = [v1_schedule().timestep(sigma) for sigma in uniform_sigmas(4)[:-1]]
    assert timesteps == pytest.approx([999, 666, 333, 0], abs=1e-6)
    assert uniform_sigmas(4)[-1] == 0


def test_karras_follows_the_papers_formula() -> None:
    low, high = v1_schedule().sigmas[0], v1_schedule().sigmas[-1]
    expected = [(high ** (1 / 7) + i / 4 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(5)]
    assert karras_sigmas(5) == pytest.approx([*expected, 0])


def test_leading_spacing_has_offset_one_and_its_own_end() -> None:
    timesteps = [v1_schedule().timestep(sigma) for sigma in ddim_sigmas(4)]
    assert timesteps == pytest.approx([751, 501, 251, 1, 0], abs=1e-6)
    assert ddim_sigmas(4)[-1] == v1_schedule().sigmas[0]
    assert ddpm_sigmas(4)[:-1] == ddim_sigmas(4)[:-1]
    assert ddpm_sigmas(4)[-1] == 0


@pytest.mark.parametrize(
    ("steps", "strength", "kept"), [(10, 0.8, 8), (10, 1.0, 10), (10, 0.01, 1), (25, 0.5, 12), (1, 0.3, 1)]
)
def test_tail_keeps_int_of_steps_times_strength(steps: int, strength: float, kept: int) -> None:
    sigmas = uniform_sigmas(steps)
    assert tail(sigmas, strength) == sigmas[-kept - 1 :]
