"""The Brownian path beside torchsde's, number for number."""

from itertools import pairwise

import pytest
import torch

from sd_core.sampling.brownian import BrownianTree
from sd_core.sampling.registry import SCHEDULES
from sd_core.sampling.schedule import v1_schedule
from tests.support.k_diffusion import k_diffusion

SHAPE = (1, 4, 8, 8)
# The ends of the path are rounded, so that the first and the last level are beyond them by some 1e-7.
pytestmark = pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning")


def test_known_answers() -> None:
    sigmas = k_diffusion.get_sigmas_karras(10, 0.029167158, 14.614641).tolist()
    low, high = torch.tensor([0.029167158, 14.614641]).tolist()
    tree = BrownianTree(42, low, high, SHAPE)
    for query, known in [
        (0, [-1.3194838, 0.8688864, 0.9060260]),
        (1, [0.7685556, -1.0449382, -0.2125494]),
        (5, [-0.3109287, 1.8099140, 0.5199615]),
    ]:
        noise = tree.noise(sigmas[query], sigmas[query + 1]).flatten()[:3]
        assert noise.tolist() == pytest.approx(known, abs=6e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", [0, 42, 2**63 - 1])
def test_every_interval_of_a_schedule_is_that_of_torchsde(schedule: str, seed: int) -> None:
    sigmas = torch.tensor(SCHEDULES[schedule].sigmas(v1_schedule(), 12)[:-1])
    low, high = sigmas.min(), sigmas.max()
    theirs = k_diffusion.BrownianTreeNoiseSampler(torch.zeros(SHAPE), low, high, seed=seed)
    ours = BrownianTree(seed, float(low), float(high), SHAPE)
    for sigma, sigma_next in pairwise(sigmas):
        middle = (sigma * sigma_next).sqrt()
        for start, end in ((sigma, middle), (sigma, sigma_next)):
            assert torch.equal(ours.noise(float(start), float(end)), theirs(start, end))


def test_any_order_of_questions_has_the_same_answers() -> None:
    theirs = k_diffusion.torchsde.BrownianTree(0.0, torch.zeros(SHAPE), 10.0, entropy=7)
    times = [0.0, 0.000001, 0.5, 2.5, 3.141593, 5.0, 7.25, 9.999999, 10.0]
    intervals = [(start, end) for start in times for end in times if start < end]
    expected = {interval: theirs(*interval) for interval in intervals}
    for order in (intervals, intervals[::-1], sorted(intervals, key=lambda each: each[1] - each[0])):
        ours = BrownianTree(7, 0.0, 10.0, SHAPE)
        assert all(torch.equal(ours.increment(*interval), expected[interval]) for interval in order)


def test_beyond_its_ends_a_path_does_not_move() -> None:
    tree = BrownianTree(1, 1.0, 2.0, SHAPE)
    assert torch.equal(tree.increment(0.0, 3.0), tree.increment(1.0, 2.0))
    assert not tree.increment(2.5, 3.0).any() and not tree.increment(1.5, 1.5).any()


def test_parts_of_an_interval_add_up_and_its_variance_is_its_length() -> None:
    tree = BrownianTree(3, 0.0, 16.0, (1, 4, 64, 64))
    whole, parts = tree.increment(1.0, 6.0), (tree.increment(1.0, 2.7), tree.increment(2.7, 6.0))
    torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-5)
    assert float(whole.var()) == pytest.approx(5.0, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([part.flatten() for part in parts]))[0, 1])) < 0.03
