"""Whether a checkpoint holds exactly the tensors that its architecture requires."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sd_core.errors import ModelError
from sd_core.formats.detect import Architecture, Contents
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, show, show_some
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE

Network = TypeVar("Network", bound=nn.Module)


class _WithoutInitialization(TorchFunctionMode):
    """Skips the initialization of new parameters, which would import torch's compiler on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def meta_networks(architecture: Architecture) -> tuple[CLIPTextEncoder, UNet, VAE]:
    """The three networks with parameters on the meta device, neither allocated nor initialized."""
    return (
        meta_network(lambda: CLIPTextEncoder(architecture.text)),
        meta_network(lambda: UNet(architecture.unet)),
        meta_network(lambda: VAE(architecture.vae)),
    )


def meta_network(build: Callable[[], Network]) -> Network:
    """A network that `build` makes, with parameters on the meta device and not initialized."""
    with torch.device("meta"), _WithoutInitialization():
        return build()


def networks_shapes(networks: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape of every tensor of these networks, by the prefixes of their names."""
    return {
        prefix + name: tuple(tensor.shape)
        for prefix, network in networks.items()
        for name, tensor in network.state_dict().items()
    }


def expected_shapes(architecture: Architecture | Contents) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape of every tensor that a file of these networks holds, without extras."""
    return networks_shapes(contained_networks(architecture))


def contained_networks(contents: Architecture | Contents) -> dict[str, nn.Module]:
    """The networks of a checkpoint or a part of one, by the prefixes of their names, on the meta device."""
    networks: dict[str, nn.Module] = {UNET_PREFIX: meta_network(lambda: UNet(contents.unet))}
    text, vae = contents.text, contents.vae
    if text is not None:
        networks[TEXT_PREFIX] = meta_network(lambda: CLIPTextEncoder(text))
    if vae is not None:
        networks[VAE_PREFIX] = meta_network(lambda: VAE(vae))
    return networks


@dataclass(frozen=True)
class Difference:
    """How the tensors found differ from those expected. `misshaped` holds (name, found shape, expected shape)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing ({show_some(self.missing)})")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected ({show_some(self.unexpected)})")
        if self.misshaped:
            name, found, expected = self.misshaped[0]
            first = f"{show(name)} is {list(found)}, not {list(expected)}"
            parts.append(f"{len(self.misshaped)} of another shape ({first})")
        return "tensors differ from the architecture's: " + "; ".join(parts)


def compare(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> Difference:
    """The difference between two sets of canonical names and shapes, sorted by name."""
    return Difference(
        missing=tuple(sorted(expected.keys() - found.keys())),
        unexpected=tuple(sorted(found.keys() - expected.keys())),
        misshaped=tuple(
            (name, found[name], expected[name])
            for name in sorted(found.keys() & expected.keys())
            if found[name] != expected[name]
        ),
    )


def require_equal(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """ModelError if the two differ. It names the first missing, unexpected and misshaped tensors."""
    if difference := compare(found, expected):
        raise ModelError(str(difference))
