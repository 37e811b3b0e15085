import pytest
from torch import Tensor

from sd_core.formats.check import meta_networks
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE
from tests.support.random_weights import TINY, random_state_dict


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, Tensor]:
    return random_state_dict(TINY)


@pytest.fixture
def networks(tiny_weights: dict[str, Tensor]) -> tuple[CLIPTextEncoder, UNet, VAE]:
    """Tiny random networks, new for each test."""
    made = meta_networks(TINY)
    for prefix, network in zip((TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX), made, strict=True):
        weights = {
            name.removeprefix(prefix): tensor.clone()
            for name, tensor in tiny_weights.items()
            if name.startswith(prefix)
        }
        network.load_state_dict(weights, assign=True)
        network.requires_grad_(False).eval()
    return made


@pytest.fixture
def text_encoder(networks: tuple[CLIPTextEncoder, UNet, VAE]) -> CLIPTextEncoder:
    return networks[0]


@pytest.fixture
def unet(networks: tuple[CLIPTextEncoder, UNet, VAE]) -> UNet:
    return networks[1]


@pytest.fixture
def vae(networks: tuple[CLIPTextEncoder, UNet, VAE]) -> VAE:
    return networks[2]
