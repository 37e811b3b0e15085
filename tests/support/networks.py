"""Tiny random networks with plain layers, not laid out for a device."""

from collections.abc import Mapping

from torch import Tensor

from sd_core.formats.check import meta_networks
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE
from tests.support.random_weights import TINY


def tiny_networks(weights: Mapping[str, Tensor]) -> tuple[CLIPTextEncoder, UNet, VAE]:
    """The networks of TINY in evaluation mode, with copies of the checkpoint's tensors `weights`."""
    networks = meta_networks(TINY)
    for prefix, network in zip((TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX), networks, strict=True):
        own = {name.removeprefix(prefix): each.clone() for name, each in weights.items() if name.startswith(prefix)}
        network.load_state_dict(own, assign=True)
        network.requires_grad_(False).eval()
    return networks
