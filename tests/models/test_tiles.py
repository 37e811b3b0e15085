from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.models.tiles import tiled


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (17, 9), (3, 41), (40, 33)])
def test_an_elementwise_network_gives_the_same_in_tiles(height: int, width: int) -> None:
    sizes = []

    def network(part: Tensor) -> Tensor:
        sizes.append(part.shape[2:])
        return F.interpolate(part * 2 + 1, scale_factor=8.0)

    x = torch.randn(1, 4, height, width)
    torch.testing.assert_close(tiled(network, x, 16, 4, Fraction(8)), F.interpolate(x * 2 + 1, scale_factor=8.0))
    assert all(max(size) <= 16 for size in sizes)
    # If a side is longer than a tile, every tile has its full length.
    assert {size[0] for size in sizes} == {min(height, 16)} and {size[1] for size in sizes} == {min(width, 16)}


def test_a_shrinking_network_gives_the_same_in_tiles() -> None:
    x = torch.randn(1, 3, 80, 136)
    shrunk = tiled(lambda part: F.avg_pool2d(part, 8), x, 64, 16, Fraction(1, 8))
    torch.testing.assert_close(shrunk, F.avg_pool2d(x, 8))


def test_seams_are_blended() -> None:
    """Between different tiles there is a ramp, not a step."""
    levels = iter([0.0, 1.0])
    answer = tiled(lambda part: torch.full_like(part, next(levels)), torch.zeros(1, 1, 16, 28), 16, 4, Fraction(1))
    assert answer[0, 0, 0, 0] == 0 and answer[0, 0, 0, -1] == 1
    assert float(answer.diff(dim=3).max()) < 0.3
