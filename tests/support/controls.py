"""Small random ControlNets beside the networks of TINY."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sd_core.formats.keys import UNET_PREFIX
from sd_core.models.controlnet import ControlNet, ControlNetConfig
from tests.support.random_weights import TINY, random_tensor

TINY_CONTROLNET = ControlNetConfig(TINY.unet, hint_widths=(8, 8, 16, 16, 24, 24, 32))


def random_controlnet(config: ControlNetConfig = TINY_CONTROLNET, seed: int = 1) -> dict[str, Tensor]:
    """Weights, whose parts in common with the UNet differ from a checkpoint's of another seed."""
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in ControlNet(config).state_dict().items()}
    return {name: random_tensor(UNET_PREFIX + name, shape, seed) for name, shape in shapes.items()}


def controlnet(
    config: ControlNetConfig = TINY_CONTROLNET, weights: Mapping[str, Tensor] | None = None, key: str = "tiny"
) -> ControlNet:
    """A ControlNet with plain layers, in evaluation mode."""
    with torch.device("meta"):
        network = ControlNet(config, key)
    network.load_state_dict(random_controlnet(config) if weights is None else weights, assign=True)
    return network.requires_grad_(False).eval()


def random_hint(height: int, width: int, seed: int = 0) -> Tensor:
    """A hint (1, 3, height, width) in [0, 1]."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
