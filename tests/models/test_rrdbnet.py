"""ESRGAN's network beside its formulas written out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.models.rrdbnet import RRDBNet
from tests.support.upscalers import SMALL, random_weights


def written_out(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def lrelu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    first = conv("conv_first", x)
    h = first
    for block in range(SMALL.blocks):
        entering = h
        for part in (1, 2, 3):
            name = f"body.{block}.rdb{part}"
            x1 = lrelu(conv(f"{name}.conv1", h))
            x2 = lrelu(conv(f"{name}.conv2", torch.cat((h, x1), 1)))
            x3 = lrelu(conv(f"{name}.conv3", torch.cat((h, x1, x2), 1)))
            x4 = lrelu(conv(f"{name}.conv4", torch.cat((h, x1, x2, x3), 1)))
            h = h + 0.2 * conv(f"{name}.conv5", torch.cat((h, x1, x2, x3, x4), 1))
        h = entering + 0.2 * h
    h = first + conv("conv_body", h)
    for layer in ("conv_up1", "conv_up2"):
        h = lrelu(conv(layer, h.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    return conv("conv_last", lrelu(conv("conv_hr", h)))


@torch.inference_mode()
def test_the_network_is_its_formulas() -> None:
    network, weights = RRDBNet(SMALL), random_weights()
    network.load_state_dict(weights)
    pixels = torch.rand(2, 3, 9, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(pixels), written_out(weights, pixels), rtol=1e-4, atol=1e-5)


def test_memory_is_counted_by_pixels() -> None:
    network = RRDBNet(SMALL)
    assert network.bytes_for(4000) > 1.9 * network.bytes_for(2000) > 0
    assert network.nbytes == sum(4 * each.numel() for each in network.parameters())
