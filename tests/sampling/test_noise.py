import torch

from sd_core.sampling.noise import CPUNoise

SHAPE = (1, 4, 3, 5)
CPU = torch.device("cpu")


def test_a_seed_gives_the_numbers_of_torchs_cpu_generator_in_order() -> None:
    generator, noise = torch.Generator().manual_seed(7), CPUNoise(7, SHAPE, CPU)
    for _ in range(3):
        assert torch.equal(noise.draw(), torch.randn(SHAPE, generator=generator))


def test_another_shape_is_drawn_from_the_same_numbers() -> None:
    generator, noise = torch.Generator().manual_seed(7), CPUNoise(7, SHAPE, CPU)
    for shape in ((1, 4, 6, 10), (2, 3)):
        assert torch.equal(noise.draw(shape), torch.randn(shape, generator=generator))
    assert torch.equal(noise.draw(), torch.randn(SHAPE, generator=generator))


def test_disjoint_intervals_have_independent_normal_noise() -> None:
    noise = CPUNoise(3, (1, 4, 64, 64), CPU)
    first, second = noise.between(14.6, 9.1), noise.between(9.1, 5.5)
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 0.03
    assert abs(first.std() - 1) < 0.03 and abs(second.std() - 1) < 0.03
