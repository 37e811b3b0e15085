import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.layout import onednn, winograd
from sd_core.layout.packed import WinogradConv2d
from sd_core.models.layers import Conv2d

needs_onednn = pytest.mark.skipif(not onednn.packs(torch.float32), reason="no oneDNN for this processor")

SIZES = [(2, 9, 7), (3, 2, 1), (1, 64, 48), (5, 8, 8), (1, 1, 1)]


def relative_error(answer: Tensor, exact: Tensor) -> float:
    return ((answer.double() - exact).square().mean() / exact.square().mean()).sqrt().item()


@needs_onednn
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_winograd_equals_the_convolution_at_every_size(size: tuple[int, int, int], bias: bool) -> None:
    batch, height, width = size
    x = torch.randn(batch, 6, height, width)
    layer = Conv2d(6, 10, 3, padding=1, bias=bias)
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double() if bias else None, padding=1)
    answer = winograd.convolution(x, winograd.packed(layer.weight, torch.float32), layer.bias, layer.padding)
    assert answer.shape == exact.shape
    assert relative_error(answer, exact) < 1e-6


@needs_onednn
def test_an_image_or_a_vector_is_added() -> None:
    layer, x = Conv2d(6, 10, 3, padding=1), torch.randn(2, 6, 5, 8)
    matrices = winograd.packed(layer.weight, torch.float32)
    plain = winograd.convolution(x, matrices, layer.bias, layer.padding)
    for add in (torch.randn(2, 10, 5, 8), torch.randn(2, 10, 1, 1)):
        torch.testing.assert_close(winograd.convolution(x, matrices, layer.bias, layer.padding, add), plain + add)


@needs_onednn
def test_slices_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Conv2d(6, 10, 3, padding=1), torch.randn(5, 6, 14, 10)
    matrices = winograd.packed(layer.weight, torch.float32)
    whole = winograd.convolution(x, matrices, layer.bias, layer.padding)
    for tiles in (1, 5, 12, 80):  # one tile, one row, more than two rows, more than two images
        monkeypatch.setattr(winograd, "TILES", tiles)
        torch.testing.assert_close(
            winograd.convolution(x, matrices, layer.bias, layer.padding), whole, rtol=1e-5, atol=1e-6
        )


@needs_onednn
def test_a_wide_layer_is_as_exact_as_a_plain_one() -> None:
    wide = winograd.MIN_CHANNELS
    layer, x = Conv2d(wide, wide, 3, padding=1), torch.randn(2, wide, 12, 12)
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    plain = relative_error(layer(x), exact)
    variant = WinogradConv2d.of(layer, torch.float32)
    for _ in range(2):
        assert relative_error(variant(x), exact) < max(2 * plain, 1e-6)


@pytest.mark.skipif(not onednn.packs(torch.bfloat16), reason="no bfloat16 products on this processor")
def test_bfloat16_rounds_only_a_little_more() -> None:
    layer, x = Conv2d(256, 256, 3, padding=1).bfloat16(), torch.randn(1, 256, 8, 8).bfloat16()
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    assert relative_error(WinogradConv2d.of(layer, torch.bfloat16)(x), exact) < 0.01  # 0.0023 is one rounding


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(256, 256, 1),
        Conv2d(256, 256, 3, padding=1, stride=2),
        Conv2d(256, 256, 3),
        Conv2d(256, 256, 3, padding=2, dilation=2),
        Conv2d(256, 256, 3, padding=1, groups=2),
        Conv2d(255, 256, 3, padding=1),
        Conv2d(256, 255, 3, padding=1),
    ],
    ids=["1x1", "stride", "unpadded", "dilated", "grouped", "narrow in", "narrow out"],
)
def test_other_layers_are_not_suited(layer: Conv2d) -> None:
    assert not winograd.suits(layer)
    assert winograd.suits(Conv2d(256, 256, 3, padding=1))
