import pytest
from torch import Tensor

from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE
from tests.support.networks import tiny_networks
from tests.support.random_weights import TINY, random_state_dict


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, Tensor]:
    return random_state_dict(TINY)


@pytest.fixture
def networks(tiny_weights: dict[str, Tensor]) -> tuple[CLIPTextEncoder, UNet, VAE]:
    """Tiny random networks, new for each test."""
    return tiny_networks(tiny_weights)


@pytest.fixture
def text_encoder(networks: tuple[CLIPTextEncoder, UNet, VAE]) -> CLIPTextEncoder:
    return networks[0]


@pytest.fixture
def unet(networks: tuple[CLIPTextEncoder, UNet, VAE]) -> UNet:
    return networks[1]


@pytest.fixture
def vae(networks: tuple[CLIPTextEncoder, UNet, VAE]) -> VAE:
    return networks[2]
