from math import acos, sin

import numpy as np
import pytest
import torch

from sd_core.sampling.ahead import DEPTH
from sd_core.sampling.brownian import BrownianTree
from sd_core.sampling.noise import CPUNoise, Seeding, slerp
from sd_core.sampling.philox import philox_normal

SHAPE = (1, 4, 3, 5)
CPU = torch.device("cpu")
NV = Seeding(rng="nv")


def nv(seed: int, draw: int) -> torch.Tensor:
    return torch.from_numpy(philox_normal(seed, draw, 60)).reshape(SHAPE)


def test_a_seed_gives_the_numbers_of_torchs_cpu_generator_in_order() -> None:
    generator, noise = torch.Generator().manual_seed(7), CPUNoise(7, SHAPE, CPU)
    for draw in (noise.posterior, noise.initial, noise.posterior, noise.draw, noise.draw):
        assert torch.equal(draw(), torch.randn(SHAPE, generator=generator))


def test_another_shape_is_drawn_from_the_same_numbers() -> None:
    generator, noise = torch.Generator().manual_seed(7), CPUNoise(7, SHAPE, CPU)
    for shape in ((1, 4, 6, 10), (2, 3)):
        assert torch.equal(noise.draw(shape), torch.randn(shape, generator=generator))
    assert torch.equal(noise.draw(), torch.randn(SHAPE, generator=generator))


def test_nv_draws_the_posterior_elsewhere_so_that_the_initial_noise_comes_first() -> None:
    noise = CPUNoise(7, SHAPE, CPU, NV)
    assert torch.equal(noise.posterior(), torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(noise.initial(), nv(7, 0))
    noise.posterior()
    assert torch.equal(noise.draw(), nv(7, 1)) and torch.equal(noise.draw(), nv(7, 2))


@pytest.mark.parametrize("rng", ["cpu", "nv"])
def test_a_delta_changes_the_seed_of_the_sampler_alone(rng: str) -> None:
    plain, changed = CPUNoise(7, SHAPE, CPU, Seeding(rng)), CPUNoise(7, SHAPE, CPU, Seeding(rng, sampler_delta=31337))
    other = CPUNoise(7 + 31337, SHAPE, CPU, Seeding(rng))
    assert torch.equal(changed.posterior(), plain.posterior())
    assert torch.equal(changed.initial(), plain.initial())
    assert torch.equal(changed.draw(), other.initial())
    assert torch.equal(changed.between(2.0, 1.0), plain.between(2.0, 1.0)), "the path keeps the picture's seed"
    assert CPUNoise(2**63 - 1, SHAPE, CPU, Seeding(rng, sampler_delta=5)).draw().isfinite().all()


@pytest.mark.parametrize("rng", ["cpu", "nv"])
def test_a_variation_lies_between_two_seeds(rng: str) -> None:
    def initial(seed: int, variation_seed: int = 0, strength: float = 0.0) -> torch.Tensor:
        return CPUNoise(seed, SHAPE, CPU, Seeding(rng, variation_seed, strength)).initial()

    one, other = initial(1), initial(2)
    assert torch.equal(initial(1, 2, 0.3), slerp(one, other, 0.3))
    torch.testing.assert_close(initial(1, 2, 1e-6), one, rtol=0, atol=1e-4)
    torch.testing.assert_close(initial(1, 2, 1.0), other, rtol=0, atol=1e-4)
    assert torch.equal(initial(1, 1, 0.5), one), "the same seed has no variation"
    mixed = CPUNoise(1, SHAPE, CPU, Seeding(rng, 2, 0.3))
    mixed.initial()
    plain = CPUNoise(1, SHAPE, CPU, Seeding(rng))
    plain.initial()
    assert torch.equal(mixed.draw(), plain.draw()), "what the sampler draws is the seed's"


def test_the_arc_of_a_variation_is_that_of_each_column() -> None:
    low, high = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    mixed = slerp(low, high, 0.25)
    one, other = low[0, 2, :, 3].numpy(), high[0, 2, :, 3].numpy()
    angle = acos(float(one @ other) / float(np.linalg.norm(one) * np.linalg.norm(other)))
    expected = (sin(0.75 * angle) * one + sin(0.25 * angle) * other) / sin(angle)
    assert mixed[0, 2, :, 3].numpy() == pytest.approx(expected, abs=1e-5)


def test_the_path_is_that_of_the_seed_over_the_span() -> None:
    noise = CPUNoise(3, SHAPE, CPU, span=(0.5, 8.0))
    assert torch.equal(noise.between(4.0, 2.0), BrownianTree(3, 0.5, 8.0, SHAPE).noise(4.0, 2.0))
    assert not torch.equal(noise.between(4.0, 2.0), CPUNoise(3, SHAPE, CPU).between(4.0, 2.0))
    assert torch.equal(noise.between(4.0, 2.0), noise.between(4.0, 2.0))


INTERVALS = [(8.0, 6.0), (8.0, 4.0), (4.0, 3.0), (3.0, 2.0), (2.0, 1.0)]


def test_noise_made_ahead_is_the_same() -> None:
    plain, supplied = CPUNoise(3, SHAPE, CPU), CPUNoise(3, SHAPE, CPU)
    ahead = supplied.ahead(INTERVALS)
    assert ahead is not None and ahead.is_wanted and ahead.is_empty
    for number, interval in enumerate(INTERVALS):
        if number % 2:
            ahead.fill()
            assert not ahead.is_empty
        assert torch.equal(supplied.between(*interval), plain.between(*interval))
    assert not ahead.is_empty, "nothing more is to be made"
    ahead.fill()
    assert not ahead.is_wanted
    assert torch.equal(supplied.between(5.0, 4.5), plain.between(5.0, 4.5)), "an interval that was not expected"


def test_only_numbers_that_take_time_are_made_ahead_and_only_once_a_sampler_draws() -> None:
    assert CPUNoise(3, SHAPE, CPU).ahead([]) is None
    noise = CPUNoise(3, SHAPE, CPU, NV)
    ahead = noise.ahead([])
    assert ahead is not None and not ahead.is_wanted and not ahead.is_empty
    noise.initial()
    drawn = [noise.draw()]
    assert ahead.is_wanted and ahead.is_empty
    ahead.fill()
    assert not ahead.is_wanted
    drawn += [noise.draw() for _ in range(DEPTH + 2)]
    assert all(torch.equal(each, nv(3, number)) for number, each in enumerate(drawn, start=1))
