"""Random adapters of every layer of a network, and networks that have them merged into their weights."""

import zlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sd_core.adapters.apply import Adapter
from sd_core.adapters.delta import Delta, Dense, LowRank, Norm
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet

GAIN = 0.5
"""The size of a change relative to that of the layer's output, so that a mistake in one layer shows."""


def random_adapter(unet: UNet, text_encoder: CLIPTextEncoder, seed: int, rank: int = 4) -> Adapter:
    """A change of every layer: low rank of most, dense of some convolutions, of weight and bias of the norms."""
    return Adapter(f"random {seed} {rank}", random_deltas(unet, seed, rank), random_deltas(text_encoder, seed, rank))


def random_deltas(network: nn.Module, seed: int, rank: int = 4) -> dict[str, Delta]:
    deltas = {name: _delta(name, layer, seed, rank) for name, layer in network.named_modules()}
    return {name: delta for name, delta in deltas.items() if delta is not None}


def merged(network: nn.Module, changes: Iterable[tuple[Mapping[str, Delta], float]]) -> dict[str, Tensor]:
    """The network's state dict with these changes added, each so many times."""
    state = {name: tensor.float().clone() for name, tensor in network.state_dict().items()}
    for deltas, scale in changes:
        for name, delta in deltas.items():
            state[f"{name}.weight"] += scale * delta.weight()
            if delta.bias is not None:
                state[f"{name}.bias"] += scale * delta.bias
    return state


def _delta(name: str, layer: nn.Module, seed: int, rank: int) -> Delta | None:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        return Norm(GAIN * random(*weight.shape), 0.1 * GAIN * random(*weight.shape) * weight.std().item())
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return None
    size = GAIN * weight.float().std().item()
    bias = None if layer.bias is None else size * random(len(weight))
    stride = layer.stride if isinstance(layer, nn.Conv2d) else (1, 1)
    if isinstance(layer, nn.Conv2d) and "out_layers" in name:
        return Dense(size * random(*weight.shape), stride, bias)
    return LowRank(random(rank, *weight.shape[1:]), size / rank**0.5 * random(len(weight), rank), stride, bias)
