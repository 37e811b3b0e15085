"""Small random ESRGAN files, in every layout that is read."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sd_core.models.rrdbnet import RRDBNet, RRDBNetConfig

SMALL = RRDBNetConfig(features=8, growth=4, blocks=2)


def random_weights(config: RRDBNetConfig = SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Weights under the names of the new layout, of a network whose output is near what it received in size."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: each.shape for name, each in RRDBNet(config).state_dict().items()}
    return {
        name: 0.3 * torch.randn(shape, generator=generator) / max(1, shape[1:].numel()) ** 0.5
        if len(shape) == 4
        else 0.1 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def _old(name: str, blocks: int, doublings: int) -> str:
    after = 1 + 3 * doublings
    fixed = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}"}
    fixed |= {f"conv_up{index + 1}": f"model.{3 * index + 3}" for index in range(doublings)}
    fixed |= {"conv_hr": f"model.{after + 1}", "conv_last": f"model.{after + 3}"}
    layer, _, kind = name.rpartition(".")
    if layer in fixed:
        return f"{fixed[layer]}.{kind}"
    return re.sub(r"^body\.(\d+)\.rdb(\d)\.conv(\d)\.", r"model.1.sub.\1.RDB\2.conv\3.0.", name)


def _bsrgan(name: str) -> str:
    name = re.sub(r"^body\.(\d+)\.rdb(\d)\.", r"RRDB_trunk.\1.RDB\2.", name)
    for new, old in (("conv_body.", "trunk_conv."), ("conv_up", "upconv"), ("conv_hr.", "HRconv.")):
        name = name.replace(new, old)
    return name


LAYOUTS: Mapping[str, Callable[[dict[str, Tensor], RRDBNetConfig], dict[str, Tensor]]] = {
    "new": lambda weights, _: weights,
    "old": lambda weights, config: {
        _old(name, config.blocks, config.doublings): each for name, each in weights.items()
    },
    "bsrgan": lambda weights, _: {_bsrgan(name): each for name, each in weights.items()},
}


def write_upscaler(path: Path, config: RRDBNetConfig = SMALL, layout: str = "new", wrapper: str = "") -> None:
    """A `.pth` file; `wrapper` is the key under which the weights lie."""
    weights = LAYOUTS[layout](random_weights(config), config)
    torch.save({wrapper: weights} if wrapper else weights, path)
