import numpy as np
import pytest

from sd_core.sampling.philox import philox_normal


@pytest.mark.parametrize(
    ("seed", "draw", "count", "known"),
    [
        (42, 0, 4 * 64 * 64, [0.19401887, 2.1613739, -0.17205095, 0.84906]),
        (42, 1, 4 * 64 * 64, [0.13913749, -0.10821616, -0.7174222]),
        (2**40 + 5, 0, 4, [1.0671086, -1.1719362, 0.7128459]),
    ],
)
def test_the_numbers_are_those_of_automatic1111s_nv(seed: int, draw: int, count: int, known: list[float]) -> None:
    drawn = philox_normal(seed, draw, count)
    assert drawn.dtype == np.float32 and drawn.shape == (count,)
    assert np.array_equal(drawn[: len(known)], np.array(known, np.float32))


def test_the_numbers_are_a_gpus_to_the_rounding_of_its_logarithm_and_sine() -> None:
    """What torch.randn(3, 4, device="cuda") draws after torch.manual_seed(0)."""
    gpu = [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564]
    gpu += [-0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497]
    assert np.abs(philox_normal(0, 0, 12) - np.array(gpu, np.float32)).max() <= 4e-7


def test_every_bit_of_seed_and_draw_counts() -> None:
    known = philox_normal(1, 0, 8)
    assert all(not np.array_equal(known, philox_normal(1 + (1 << bit), 0, 8)) for bit in range(1, 63))
    assert not np.array_equal(known, philox_normal(1, 1, 8))
    assert np.array_equal(known[:5], philox_normal(1, 0, 5))


def test_the_numbers_are_normal() -> None:
    drawn = philox_normal(9, 3, 100_000)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.02
    assert np.isfinite(drawn).all()
