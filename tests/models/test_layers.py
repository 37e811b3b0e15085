import math

import pytest
import torch
import torch.nn.functional as F

from sd_core.models.layers import Linear, timestep_embedding


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 1, 6), (3, 6)])
def test_linear_as_a_convolution_is_the_same_product(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = Linear(6, 4, bias=bias), torch.randn(shape)
    layer.as_convolution = True
    expected = F.linear(x, layer.weight, layer.bias)
    assert layer(x).shape == expected.shape
    torch.testing.assert_close(layer(x), expected)


def test_timestep_embedding_holds_cosines_then_sines() -> None:
    embedding = timestep_embedding(torch.tensor([0.0, 3.5]), 8)
    frequencies = [10_000 ** (-index / 4) for index in range(4)]
    expected = [math.cos(3.5 * f) for f in frequencies] + [math.sin(3.5 * f) for f in frequencies]
    torch.testing.assert_close(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(embedding[1], torch.tensor(expected))


def test_timestep_embedding_is_float32_and_tells_neighbours_apart() -> None:
    embedding = timestep_embedding(torch.tensor([998.0, 999.0, 999.5], dtype=torch.float64), 320)
    assert embedding.dtype == torch.float32
    assert (embedding[0] - embedding[1]).abs().max() > 0.5
    assert (embedding[1] - embedding[2]).abs().max() > 0.2
