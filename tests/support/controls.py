"""Small random ControlNets and T2I-Adapters beside the networks of TINY, and their files in every layout."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.catalogue import Catalogue, Kind
from sd_core.formats.keys import UNET_PREFIX
from sd_core.models.controlnet import ControlNet, ControlNetConfig
from sd_core.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from sd_core.volume import Library
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


Weights = Mapping[str, Tensor]

TINY_ADAPTER = T2IAdapterConfig(channels=TINY.unet.channels)


def random_adapter_weights(config: T2IAdapterConfig = TINY_ADAPTER, seed: int = 2) -> dict[str, Tensor]:
    """Weights of a T2I-Adapter, whose features are about as large as what a UNet of TINY passes on."""
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in T2IAdapter(config).state_dict().items()}
    return {name: 0.3 * random_tensor(name, shape, seed) for name, shape in shapes.items()}


def t2i_adapter(channels: int = 3) -> T2IAdapter:
    """A T2I-Adapter for the UNet of TINY, in evaluation mode."""
    config = replace(TINY_ADAPTER, hint_channels=channels)
    with torch.device("meta"):
        network = T2IAdapter(config, f"adapter of {channels}")
    network.load_state_dict(random_adapter_weights(config), assign=True)
    return network.requires_grad_(False).eval()


def hint_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A hint uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def library_of(folder: Path) -> Library:
    """A library of the ControlNets in a folder."""
    return Library(Catalogue({Kind.CONTROLNET: [folder]}))


def write_guide(folder: Path, name: str, weights: Weights) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({name: each.contiguous() for name, each in weights.items()}, path)
    return path


def prefixed(weights: Weights) -> dict[str, Tensor]:
    return {f"control_model.{name}": each for name, each in weights.items()}


def difference(weights: Weights, base: Weights) -> dict[str, Tensor]:
    """What a ControlNet's weights differ by from a UNet's `base`."""
    changed = {name: each - base[name] if name in base else each for name, each in weights.items()}
    return {**prefixed(changed), "difference": torch.zeros(1)}


def control_lora(base: Weights, seed: int = 3, rank: int = 4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A control-LoRA's tensors, and the ControlNet's weights that they make of a UNet's `base`."""
    stored, weights = {"lora_controlnet": torch.zeros(1)}, dict[str, Tensor]()
    generator = torch.Generator().manual_seed(seed)
    for name, own in random_controlnet().items():
        of_unet = base.get(name)
        if of_unet is None or not name.endswith(".weight") or own.dim() < 2:
            stored[name] = weights[name] = own
            continue
        up, down = (
            torch.randn(shape, generator=generator) * 0.02 for shape in ((own.shape[0], rank), (rank, own[0].numel()))
        )
        stored[name.removesuffix("weight") + "up"] = up.reshape(*up.shape, *(1,) * (own.dim() - 2))
        stored[name.removesuffix("weight") + "down"] = down.reshape(rank, *own.shape[1:])
        weights[name] = of_unet + (up @ down).reshape(own.shape)
    return stored, weights


def adapter_in_diffusers(weights: Weights, config: T2IAdapterConfig) -> dict[str, Tensor]:
    """A T2I-Adapter's weights under diffusers' names."""
    renamed = {}
    for name, each in weights.items():
        parts = name.split(".")
        if config.is_light and parts[2] == "body":
            parts[2] = "resnets"
        elif not config.is_light and parts[0] == "body":
            level, index = divmod(int(parts[1]), config.blocks)
            parts[1:2] = [str(level)] if parts[2] == "in_conv" else [str(level), "resnets", str(index)]
        renamed["adapter." + ".".join(parts)] = each
    return renamed
