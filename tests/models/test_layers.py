import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.models import onednn
from sd_core.models.layers import Conv2d, GatedLinear, Linear, timestep_embedding

needs_onednn = pytest.mark.skipif(not onednn.packs(torch.float32), reason="no oneDNN for this processor")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 1, 6), (3, 6)])
def test_a_packed_linear_is_the_same_product(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = Linear(6, 4, bias=bias), torch.randn(shape)
    expected = F.linear(x, layer.weight, layer.bias)
    layer.packs = torch.float32
    for _ in range(2):
        torch.testing.assert_close(layer(x), expected)
    assert layer.weight.is_mkldnn and layer.weight.shape == (4, 6)


@needs_onednn
def test_a_packed_gated_linear_is_the_same() -> None:
    layer, x = GatedLinear(6, 5), torch.randn(2, 3, 6)
    value, gate = F.linear(x, layer.weight, layer.bias).chunk(2, dim=-1)
    expected = value * F.gelu(gate)
    torch.testing.assert_close(layer(x), expected)
    layer.packs = torch.float32
    for _ in range(2):
        torch.testing.assert_close(layer(x), expected)


@needs_onednn
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Linear(6, 4), torch.randn(2, 3, 6)),
        (Conv2d(5, 8, 3, padding=1), torch.randn(2, 5, 9, 7)),
        (Conv2d(5, 8, 1), torch.randn(2, 5, 9, 7)),
    ],
    ids=["linear", "3x3", "1x1"],
)
def test_layers_add_packed_and_plain(layer: Linear | Conv2d, x: Tensor) -> None:
    plain = layer(x)
    add = torch.randn_like(plain)
    torch.testing.assert_close(layer(x, add), plain + add)
    layer.packs = torch.float32
    torch.testing.assert_close(layer(x, add), plain + add, rtol=1e-4, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (1, 1, 0)])
def test_a_packed_convolution_is_the_same_at_every_size(kernel: int, stride: int, padding: int) -> None:
    layer = Conv2d(5, 8, kernel, stride=stride, padding=padding)
    pictures = [torch.randn(2, 5, 9, 7), torch.randn(1, 5, 16, 16)]
    expected = [layer(picture) for picture in pictures]
    layer.packs = torch.float32
    for picture, answer in zip(pictures, expected, strict=True):
        torch.testing.assert_close(layer(picture), answer, rtol=1e-4, atol=1e-5)
    assert layer.weight.is_mkldnn


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
