import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.given import Given
from sd_core.models.layers import Conv2d, GatedLinear, Linear, name_layers, pads, timestep_embedding


def named(layer: Linear | GatedLinear | Conv2d) -> Linear | GatedLinear | Conv2d:
    """The layer as a network named `layer` would hold it."""
    name_layers(nn.ModuleDict({"layer": layer}))
    return layer


def low_rank(down: Tensor, up: Tensor) -> Given:
    """An adapter of the linear layer `layer`: up (out, rank) times down (rank, in)."""
    return Given(adapters={"layer": lambda x, out: out + x @ down.T @ up.T})


def test_layers_are_named_as_their_network_spells_them() -> None:
    proj, conv, gated = Linear(2, 2), Conv2d(2, 2, 1), GatedLinear(2, 2)
    assert gated.name == ""
    name_layers(nn.Sequential(nn.ModuleDict({"proj": proj, "conv": conv}), gated))
    assert (proj.name, conv.name, gated.name) == ("0.proj", "0.conv", "1")


def test_an_adapter_is_added_to_the_output_before_the_sum() -> None:
    layer, x, add = named(Linear(6, 4)), torch.randn(2, 3, 6), torch.randn(2, 3, 4)
    doubled = Given(adapters={"layer": lambda _x, out: 2 * out})
    torch.testing.assert_close(layer(x, add, given=doubled), 2 * layer(x) + add)


def test_an_adapter_of_another_layer_does_nothing() -> None:
    given = Given(adapters={"other": lambda _x, out: 2 * out}, padding={"other": "circular"})
    for layer, x in (
        (named(Linear(6, 4)), torch.randn(3, 6)),
        (named(GatedLinear(6, 4)), torch.randn(3, 6)),
        (named(Conv2d(6, 4, 3, padding=1)), torch.randn(1, 6, 5, 5)),
    ):
        assert torch.equal(layer(x, given=given), layer(x))


def test_an_adapter_of_a_gated_layer_acts_before_the_gate() -> None:
    layer, x = named(GatedLinear(6, 5)), torch.randn(2, 3, 6)
    down, up = torch.randn(2, 6), torch.randn(10, 2)
    values, gates = F.linear(x, layer.weight + up @ down, layer.bias).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x, given=low_rank(down, up)), values * F.gelu(gates))


def test_an_adapter_of_a_convolution_gets_its_input_without_padding() -> None:
    layer, x = named(Conv2d(3, 2, 3, padding=1)), torch.randn(1, 3, 4, 5)
    seen = []

    def adapter(source: Tensor, out: Tensor) -> Tensor:
        seen.append(source)
        return out

    layer(x, given=Given(adapters={"layer": adapter}, padding={"layer": "circular"}))
    assert seen[0] is x


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, (1, 2)), (1, 0)])
def test_circular_padding_continues_the_image_on_the_other_side(stride: int, padding: int | tuple[int, int]) -> None:
    layer, x = named(Conv2d(3, 2, 3, stride=stride, padding=padding)), torch.randn(2, 3, 6, 4)
    rows, columns = pads(layer)
    around = F.pad(x, (columns, columns, rows, rows), mode="circular")
    expected = F.conv2d(around, layer.weight, layer.bias, stride=stride)
    torch.testing.assert_close(layer(x, given=Given(padding={"layer": "circular"})), expected)
    assert torch.equal(layer(x, given=Given(padding={"layer": "zeros"})), layer(x))


def test_padding_by_a_word_is_refused() -> None:
    with pytest.raises(ValueError, match="'same' is not a number"):
        Conv2d(2, 2, 3, padding="same")(torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Linear(6, 4), torch.randn(2, 3, 6)),
        (Conv2d(5, 8, 3, padding=1), torch.randn(2, 5, 9, 7)),
        (Conv2d(5, 8, 1), torch.randn(2, 5, 9, 7)),
    ],
    ids=["linear", "3x3", "1x1"],
)
def test_a_layer_adds_its_second_argument(layer: Linear | Conv2d, x: Tensor) -> None:
    add = torch.randn_like(layer(x))
    torch.testing.assert_close(layer(x, add), layer(x) + add)


def test_a_gated_layer_multiplies_values_by_the_gelu_of_gates() -> None:
    layer, x = GatedLinear(6, 5), torch.randn(2, 3, 6)
    values, gates = F.linear(x, layer.weight, layer.bias).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x), values * F.gelu(gates))


def test_timestep_embedding_holds_cosines_then_sines() -> None:
    embedding = timestep_embedding(torch.tensor([0.0, 3.5]), 8)
    frequencies = [10_000 ** (-index / 4) for index in range(4)]
    expected = [math.cos(3.5 * f) for f in frequencies] + [math.sin(3.5 * f) for f in frequencies]
    torch.testing.assert_close(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(embedding[1], torch.tensor(expected))


def test_timestep_embedding_is_float32_and_distinguishes_neighbours() -> None:
    embedding = timestep_embedding(torch.tensor([998.0, 999.0, 999.5], dtype=torch.float64), 320)
    assert embedding.dtype == torch.float32
    assert (embedding[0] - embedding[1]).abs().max() > 0.5
    assert (embedding[1] - embedding[2]).abs().max() > 0.2
