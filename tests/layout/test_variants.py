"""Each variant computes what its plain layer does, with adapters, circular padding and sums, and keeps its weight."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.layout import onednn, winograd
from sd_core.layout.choose import bytes_to_pack, lay_out
from sd_core.layout.variant import Variant
from sd_core.models.given import Given
from sd_core.models.layers import Conv2d, GatedLinear, Linear, name_layers, pads

CPU = torch.device("cpu")
WIDE = winograd.MIN_CHANNELS
Layer = Linear | GatedLinear | Conv2d

TOKENS: dict[str, Callable[[], Layer]] = {
    "linear": lambda: Linear(6, 4),
    "linear without bias": lambda: Linear(6, 4, bias=False),
    "gated": lambda: GatedLinear(6, 5),
}
IMAGES: dict[str, Callable[[], Layer]] = {
    "3x3": lambda: Conv2d(6, 8, 3, padding=1),
    "strided": lambda: Conv2d(6, 8, 3, padding=1, stride=2),
    "unpadded": lambda: Conv2d(6, 8, 3, stride=2, bias=False),
    "1x1": lambda: Conv2d(6, 8, 1),
    "winograd": lambda: Conv2d(WIDE, WIDE, 3, padding=1),
}
LAYERS = TOKENS | IMAGES


@pytest.fixture(params=["packed", "plain"])
def _processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This processor, with oneDNN's packed products and without them."""
    if request.param == "plain":
        monkeypatch.setattr(onednn, "packs", lambda _dtype: False)
    elif not onednn.packs(torch.float32):
        pytest.skip("no oneDNN for this processor")


def pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[Layer, Layer]:
    """A plain layer named `0`, and its variant for computing in `dtype`."""
    torch.manual_seed(0)
    network = nn.Sequential(LAYERS[name]()).requires_grad_(False)
    name_layers(network)
    plain = network[0]
    lay_out(network, CPU, dtype)
    return plain, network[0]


def source(layer: Layer, size: tuple[int, int, int] = (2, 9, 6)) -> Tensor:
    """An input: tokens, or `size` as batch, rows and columns of pixels."""
    if isinstance(layer, Conv2d):
        return torch.randn(size[0], layer.in_channels, *size[1:])
    return torch.randn(2, 3, layer.in_features)


def close(answer: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_processor")
@pytest.mark.parametrize("name", LAYERS)
def test_a_variant_computes_the_same_at_every_size(name: str) -> None:
    plain, variant = pair(name)
    for size in ((2, 9, 6), (1, 16, 16), (3, 3, 4), (2, 9, 6)):
        x = source(plain, size)
        close(variant(x), plain(x))


@pytest.mark.usefixtures("_processor")
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "gated"])
def test_a_variant_adds_its_second_argument(name: str) -> None:
    plain, variant = pair(name)
    x = source(plain)
    add = torch.randn_like(plain(x))
    close(variant(x, add), plain(x) + add)
    if isinstance(plain, Conv2d) and plain.kernel_size != (1, 1):
        vector = torch.randn(2, plain.out_channels, 1, 1)
        close(variant(x, vector), plain(x) + vector)


@pytest.mark.usefixtures("_processor")
@pytest.mark.parametrize("name", LAYERS)
def test_an_adapter_equals_the_merged_weight(name: str) -> None:
    plain, variant = pair(name)
    x = source(plain)
    delta = 0.1 * torch.randn_like(plain.weight)
    add = None if isinstance(plain, GatedLinear) else torch.randn_like(plain(x))

    def adapter(x: Tensor, out: Tensor, padding: tuple[int, int], gates: Tensor | None = None) -> Tensor:
        if isinstance(plain, Conv2d):
            return out.add_(F.conv2d(x, delta, None, plain.stride, padding))
        if gates is None:
            return out.add_(x @ delta.T)
        gates.add_(x @ delta[len(delta) // 2 :].T)
        return out.add_(x @ delta[: len(delta) // 2].T)

    given = Given(adapters={"0": adapter})
    before = variant(x) if add is None else variant(x, add)
    kept = [each.clone() for each in (x, add) if each is not None]
    adapted = variant(x, given=given) if add is None else variant(x, add, given=given)
    merged = LAYERS[name]().requires_grad_(False)
    merged.weight.copy_(plain.weight + delta)
    if plain.bias is not None:
        merged.bias.copy_(plain.bias)
    close(adapted, merged(x) if add is None else merged(x, add))
    assert torch.equal(variant(x) if add is None else variant(x, add), before)
    assert all(map(torch.equal, (each for each in (x, add) if each is not None), kept))


@pytest.mark.usefixtures("_processor")
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [(1, 5, 8), (2, 8, 5), (1, 1, 3), (1, 12, 12)])
def test_circular_padding_equals_a_convolution_of_the_continued_image(name: str, size: tuple[int, int, int]) -> None:
    plain, variant = pair(name)
    if name == "unpadded" and min(size[1:]) < 3:
        pytest.skip("the kernel is larger than the padded input, which no convolution accepts")
    x = source(plain, size)
    rows, columns = pads(plain)
    around = F.pad(x, (columns, columns, rows, rows), mode="circular")
    expected = F.conv2d(around, plain.weight, plain.bias, plain.stride)
    circular = Given(padding={"0": "circular"})
    close(variant(x, given=circular), expected)
    add = torch.randn_like(expected)
    close(variant(x, add, given=circular), expected + add)
    close(variant(x), plain(x))


@pytest.mark.usefixtures("_processor")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_weight_stored_in_another_dtype_is_used_as_if_cast_before(name: str, stored: torch.dtype) -> None:
    _, cast = pair(name)
    _, variant = pair(name)
    if not isinstance(variant, Variant):
        pytest.skip("a plain layer's weight is cast when it is loaded")
    narrow = variant.weight.to(stored)
    variant.weight, cast.weight = nn.Parameter(narrow, False), nn.Parameter(narrow.float(), False)
    x = source(variant)
    assert torch.equal(variant(x), cast(x))
    assert variant.weight.dtype == stored
    assert torch.equal(variant.dense(), narrow.float())
    assert torch.equal(variant.dense(stored), narrow)


@pytest.mark.usefixtures("_processor")
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_with_a_new_weight(name: str) -> None:
    plain, variant = pair(name)
    x = source(plain)
    variant(x)
    for assign in (True, False):
        other = LAYERS[name]().requires_grad_(False)
        variant.load_state_dict(other.state_dict(), assign=assign)
        close(variant(x), other(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_if_a_narrow_dtype_cannot_be_packed_weights_are_widened_in_use(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(onednn, "packs", lambda _dtype: False)
    plain, variant = pair(name, dtype)
    x = source(plain).to(dtype)
    expected = plain(x.float())
    variant.to(dtype)
    answer = variant(x)
    assert answer.dtype == variant.weight.dtype == dtype
    torch.testing.assert_close(answer.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.skipif(not onednn.packs(torch.float32), reason="no oneDNN for this processor")
def test_a_kernel_is_packed_once_for_each_layout() -> None:
    plain, variant = pair("3x3")
    for size in [(batch, side, side) for batch in (1, 2, 16) for side in (1, 2, 8, 16, 40)] * 2:
        variant(source(plain, size))
    kernels = variant.form.get(variant.weight, list)
    assert 1 <= len(kernels) <= 4
    assert bytes_to_pack(nn.Sequential(variant)) == 0
