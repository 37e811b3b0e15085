import pytest

from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE
from tests.support.networks import tiny_networks
from tests.support.random_weights import TINY, random_state_dict


@pytest.fixture
def networks() -> tuple[CLIPTextEncoder, UNet, VAE]:
    """Tiny random networks, new for each test."""
    return tiny_networks(random_state_dict(TINY))
