import copy
import math
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.given import Given
from sd_core.models.layers import (
    Conv2d,
    GatedLinear,
    GroupNorm,
    LayerNorm,
    Linear,
    name_layers,
    pads,
    timestep_embedding,
)

L = TypeVar("L", bound=nn.Module)


def named(layer: L) -> L:
    """The layer as a network named `layer` would hold it."""
    name_layers(nn.ModuleDict({"layer": layer}))
    return layer


def test_layers_are_named_as_their_network_spells_them() -> None:
    proj, conv, gated = Linear(2, 2), Conv2d(2, 2, 1), GatedLinear(2, 2)
    assert gated.name == ""
    name_layers(nn.Sequential(nn.ModuleDict({"proj": proj, "conv": conv}), gated))
    assert (proj.name, conv.name, gated.name) == ("0.proj", "0.conv", "1")


def test_an_adapter_is_added_to_the_output_and_leaves_the_sum_as_it_is() -> None:
    layer, x, add = named(Linear(6, 4)), torch.randn(2, 3, 6), torch.randn(2, 3, 4)
    kept = add.clone()
    increased = Given(adapters={"layer": lambda _x, out, _padding, _gates=None: out.add_(1)})
    torch.testing.assert_close(layer(x, add, given=increased), layer(x) + add + 1)
    assert torch.equal(add, kept)


@pytest.mark.parametrize("layer", [GroupNorm(32, 64), LayerNorm(64)], ids=["group", "layer"])
def test_an_adapter_of_a_norm_gets_what_is_normalized(layer: GroupNorm | LayerNorm) -> None:
    named(layer)
    layer.weight.data.normal_()
    layer.bias.data.normal_()
    x = torch.randn(2, 64, 4, 4) if isinstance(layer, GroupNorm) else torch.randn(2, 5, 64)
    weight, bias = (each[:, None, None] if x.dim() == 4 else each for each in torch.randn(2, 64))
    given = Given(adapters={"layer": lambda x, out, _padding, _gates=None: out + x * weight + bias})
    merged = copy.deepcopy(layer)
    merged.weight.data += weight.flatten()
    merged.bias.data += bias.flatten()
    torch.testing.assert_close(layer(x, given), merged(x))


def test_an_adapter_of_another_layer_does_nothing() -> None:
    given = Given(adapters={"other": lambda _x, out, _padding, _gates=None: 2 * out}, padding={"other": "circular"})
    for layer, x in (
        (named(Linear(6, 4)), torch.randn(3, 6)),
        (named(GatedLinear(6, 4)), torch.randn(3, 6)),
        (named(Conv2d(6, 4, 3, padding=1)), torch.randn(1, 6, 5, 5)),
    ):
        assert torch.equal(layer(x, given=given), layer(x))


def test_an_adapter_of_a_gated_layer_acts_before_the_gate() -> None:
    layer, x = named(GatedLinear(6, 5)), torch.randn(2, 3, 6)
    delta = torch.randn(10, 6)

    def adapter(x: Tensor, values: Tensor, _padding: tuple[int, int], gates: Tensor | None = None) -> Tensor:
        assert gates is not None
        gates.add_(x @ delta[5:].T)
        return values + x @ delta[:5].T

    values, gates = F.linear(x, layer.weight + delta, layer.bias).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x, given=Given(adapters={"layer": adapter})), values * F.gelu(gates))


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_an_adapter_of_a_convolution_pads_as_the_layer_does(mode: str) -> None:
    layer, x, delta = named(Conv2d(3, 2, 3, padding=1)), torch.randn(1, 3, 4, 5), torch.randn(2, 3, 3, 3)

    def adapter(x: Tensor, out: Tensor, padding: tuple[int, int], *_: object) -> Tensor:
        return out + F.conv2d(x, delta, padding=padding)

    padded = Given(padding={"layer": mode})
    merged = copy.deepcopy(layer)
    merged.weight.data += delta
    adapted = layer(x, given=replace(padded, adapters={"layer": adapter}))
    torch.testing.assert_close(adapted, merged(x, given=padded))


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
