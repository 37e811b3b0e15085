"""Tensors of adapter files in kohya's spelling, for the tests' networks."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from sd_core.adapters.names import UNET, Names, diffusers_name
from sd_core.models.unet import UNetConfig


def kohya_name(network: str, layer: str, config: UNetConfig) -> str:
    """kohya's name for a layer of a UNet or a text encoder."""
    name = f"lora_unet.{diffusers_name(layer, config)}" if network == UNET else f"lora_te.{layer}"
    return name.replace(".", "_")


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor.detach().clone() for name, tensor in tensors.items()}


def drawn(*shape: int) -> Tensor:
    """Random numbers, the same for each shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def lora_of(layer: str, down: Tensor, up: Tensor, **others: Tensor) -> dict[str, Tensor]:
    """A kohya LoRA of one layer. `others` replace tensors or come beside them; "__" in their names is a dot."""
    own = {"lora_down.weight": down, "lora_up.weight": up} | {
        name.replace("__", "."): tensor for name, tensor in others.items()
    }
    return {f"{layer}.{name}": tensor for name, tensor in own.items()}


def targets(names: Names) -> list[tuple[str, str]]:
    """What kohya's scripts train by default: the UNet's transformers with their projections, and the text encoder's
    attentions and MLPs."""
    return [
        (network, name)
        for (network, name), layer in names.layers.items()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and (network != UNET or "transformer_blocks" in name or name.endswith(("proj_in", "proj_out")))
    ]


def random_lora(
    names: Names,
    config: UNetConfig,
    rank: int = 4,
    alpha: float | None = 2.0,
    layers: Collection[tuple[str, str]] | None = None,
    size: float = 1.0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A kohya LoRA of these layers (network, name), or those of `targets`, whose changes have `size` times the weights'
    size."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    tensors: dict[str, Tensor] = {}
    for network, name in targets(names) if layers is None else layers:
        weight = names.layers[network, name].get_parameter("weight")
        spelled = kohya_name(network, name, config)
        down = torch.randn(rank, *weight.shape[1:], generator=generator)
        up = torch.randn(weight.shape[0], rank, *(1 for _ in weight.shape[2:]), generator=generator)
        spread = size * float(weight.std()) / rank**0.5
        tensors[f"{spelled}.lora_down.weight"] = down
        tensors[f"{spelled}.lora_up.weight"] = up * spread
        if alpha is not None:
            tensors[f"{spelled}.alpha"] = torch.tensor(alpha)
    return tensors
