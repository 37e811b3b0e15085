"""No packed weight is reordered again at a later call, whatever the widths, sizes, batch and dtype.

As a program this module computes each layer twice, the second time in a section of oneDNN's log.
"""

from collections.abc import Iterator
from itertools import pairwise, product

import pytest
import torch

from sd_core.layout import onednn
from sd_core.layout.choose import variant_of
from sd_core.models.layers import Conv2d, GatedLinear, Linear
from tests.support.onednn_log import mark, mark_end, sections

WIDTHS = (64, 96, 192, 224)
SIDES = (1, 2, 5, 8, 16, 32)
BATCHES = (1, 2, 16)
MAX_PIXELS = 2048  # of a batch; larger ones take long and lead to no other layouts

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if onednn.packs(dtype)]
CONTROL = "a weight that is not packed"


@pytest.mark.slow
@pytest.mark.skipif(not DTYPES, reason="no oneDNN for this processor")
def test_no_packed_weight_is_reordered_at_a_later_call() -> None:
    found = list(sections(["-m", "tests.layout.test_reorders"]))
    layers = [section for section in found if section.label != CONTROL]
    assert len(layers) > 100 * len(DTYPES)
    assert all(section.primitives for section in found)
    assert [section.label for section in layers if section.reorders()] == []
    (control,) = (section for section in found if section.label == CONTROL)
    assert control.reorders()  # the log shows them


def layers() -> Iterator[Linear | GatedLinear | Conv2d]:
    for narrow, wide in pairwise(WIDTHS):
        yield Conv2d(narrow, narrow, 3, padding=1)
        yield Conv2d(wide, narrow, 3, padding=1)
        yield Conv2d(narrow, narrow, 3, padding=1, stride=2)
        yield Conv2d(narrow, wide, 1)
        yield Linear(narrow, wide)
        yield GatedLinear(narrow, 4 * narrow)
    for width in (64, 192, 320):
        yield Conv2d(4, width, 3, padding=1)
        yield Conv2d(width, 4, 3, padding=1)
    yield Conv2d(128, 3, 3, padding=1)
    yield Conv2d(320, 320, 3, padding=1)


@torch.inference_mode()
def main() -> None:
    for dtype, layer in product(DTYPES, layers()):
        variant = variant_of(layer.to(dtype), dtype)
        assert variant is not None
        for batch, side in product(BATCHES, SIDES):
            if batch * side**2 > MAX_PIXELS:
                continue
            if isinstance(layer, Conv2d):
                x = torch.randn(batch, layer.in_channels, side, side, dtype=dtype)
            else:
                x = torch.randn(batch, side * side, layer.in_features, dtype=dtype)
            variant(x)
            mark(f"{layer} {dtype} {list(x.shape)}")
            variant(x)
            mark_end()
    x, layer = torch.randn(1, 64, 8, 8), Conv2d(64, 64, 3, padding=1)
    mark(CONTROL)
    onednn.convolution(x, layer.weight, layer.bias, onednn.Geometry.of(layer, (1, 1)))
    mark_end()


if __name__ == "__main__":
    main()
