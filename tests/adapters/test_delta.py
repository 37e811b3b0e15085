"""Every delta adds to a layer's output what its dense weight would add."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.adapters.delta import Delta, Dense, LowRank, Norm, channelwise

IN, OUT, RANK = 6, 10, 3
CPU = torch.device("cpu")


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LINEAR = {
    "low rank": LowRank(random(RANK, IN), random(OUT, RANK)),
    "low rank with a bias": LowRank(random(RANK, IN), random(OUT, RANK), bias=random(OUT)),
    "dense": Dense(random(OUT, IN), bias=random(OUT)),
}
CONVOLUTIONS = {
    "low rank": LowRank(random(RANK, IN, 3, 3), random(OUT, RANK)),
    "low rank of every other pixel": LowRank(random(RANK, IN, 3, 3), random(OUT, RANK), (2, 2), random(OUT)),
    "low rank of single pixels": LowRank(random(RANK, IN, 1, 1), random(OUT, RANK)),
    "dense": Dense(random(OUT, IN, 3, 3), bias=random(OUT)),
    "dense of every other pixel": Dense(random(OUT, IN, 3, 3), (2, 2)),
}


def biased(product: Tensor, delta: Delta) -> Tensor:
    return product if delta.bias is None else product + channelwise(delta.bias, product)


def check(delta: Delta, x: Tensor, out: Tensor, expected: Tensor, padding: tuple[int, int] = (0, 0)) -> None:
    """`expected` is the change with its bias at strength 1."""
    torch.testing.assert_close(biased(delta(x, padding), delta), expected)
    before, kept = out.clone(), x.clone()
    delta.add_to(out, x, -1.5, padding)
    torch.testing.assert_close(out, before - 1.5 * expected)
    assert torch.equal(x, kept)


@pytest.fixture(autouse=True, params=[False, True], ids=["inference", "training"])
def _grad(request: pytest.FixtureRequest) -> Iterator[None]:
    """With gradients nothing is packed."""
    with torch.set_grad_enabled(request.param):
        yield


@pytest.mark.parametrize("delta", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("shape", [(2,), (2, 5)])
def test_of_a_linear_layer(delta: Delta, shape: tuple[int, ...]) -> None:
    x = random(*shape, IN)
    check(delta, x, random(*shape, OUT), F.linear(x, delta.weight(), delta.bias))


@pytest.mark.parametrize("delta", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1)])
def test_of_a_convolution(delta: Delta, memory_format: torch.memory_format, padding: tuple[int, int]) -> None:
    if delta.weight().shape[2:] == (1, 1) and any(padding):
        pytest.skip("a 1x1 kernel has no padding to test")
    x = random(2, IN, 8, 7).to(memory_format=memory_format)
    stride = getattr(delta, "stride", (1, 1))
    expected = F.conv2d(x, delta.weight(), delta.bias, stride, padding)
    check(delta, x, torch.zeros_like(expected, memory_format=memory_format) + 1, expected, padding)


@pytest.mark.parametrize("shape", [(2, IN, 4, 5), (2, 7, IN)])
def test_of_a_norm(shape: tuple[int, ...]) -> None:
    x = random(*shape)
    delta = Norm(random(IN), random(IN))
    check(delta, x, random(*shape), x * channelwise(random(IN), x) + channelwise(random(IN), x))
    only_bias = Norm(None, random(IN))
    check(only_bias, x, random(*shape), channelwise(random(IN), x).expand(shape))
    assert torch.equal(delta.weight(), random(IN))
    assert not only_bias.weight().any()


def test_an_output_that_is_part_of_a_larger_one_keeps_the_rest() -> None:
    """Winograd's convolution returns such a view."""
    larger = torch.zeros(2, 9, 9, OUT)
    out = larger[:, :8, :8].permute(0, 3, 1, 2)
    x = random(2, IN, 8, 8).to(memory_format=torch.channels_last)
    delta = CONVOLUTIONS["low rank"]
    delta.add_to(out, x, 1.0, (1, 1))
    torch.testing.assert_close(out, F.conv2d(x, delta.weight(), padding=1))
    assert not larger[:, 8].any()
    assert not larger[:, :, 8].any()


@pytest.mark.parametrize("delta", LINEAR.values(), ids=LINEAR)
def test_of_a_gated_layer_the_output_lies_in_two_halves(delta: Delta) -> None:
    x, values, gates = random(2, 5, IN), random(2, 5, OUT // 2), random(2, 5, OUT // 2) + 1
    expected = torch.cat([values, gates], dim=-1)
    delta.add_to(expected, x, 0.5)
    delta.add_to(values, x, 0.5, gates=gates)
    torch.testing.assert_close(torch.cat([values, gates], dim=-1), expected)


def test_gradients_reach_both_factors() -> None:
    down, up = random(RANK, IN).requires_grad_(), random(OUT, RANK).requires_grad_()
    x, out = random(2, 5, IN), random(2, 5, OUT)
    with torch.enable_grad():
        LowRank(down, up).add_to(out, x)
        out.square().sum().backward()
    assert down.grad is not None and down.grad.any()
    assert up.grad is not None and up.grad.any()


def test_fewer_ranks_are_the_first_ones() -> None:
    delta = LINEAR["low rank with a bias"]
    assert isinstance(delta, LowRank)
    shortened = delta.shortened(2)
    torch.testing.assert_close(shortened.weight(), delta.up[:, :2] @ delta.down[:2])
    assert shortened.bias is delta.bias
    assert LINEAR["dense"].shortened(2) is LINEAR["dense"]


@pytest.mark.parametrize("delta", [*LINEAR.values(), *CONVOLUTIONS.values(), Norm(random(IN)), Norm(None, random(IN))])
def test_another_dtype_takes_less_memory(delta: Delta) -> None:
    moved = delta.to(CPU, torch.float16)
    assert 0 < moved.nbytes < delta.nbytes
    torch.testing.assert_close(moved.weight().float(), delta.weight(), atol=0.05, rtol=0.01)
    assert (moved.bias is None) == (delta.bias is None)
