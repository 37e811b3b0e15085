from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sd_core.adapters.apply import Adapter
from sd_core.adapters.source import Source
from sd_core.adapters.understand import understand
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from tests.support.networks import tiny_networks
from tests.support.random_weights import TINY, random_state_dict

Understood = Callable[..., Adapter]


@pytest.fixture(scope="session")
def pair() -> tuple[CLIPTextEncoder, UNet]:
    """Tiny random networks, which no test changes."""
    text_encoder, unet, _ = tiny_networks(random_state_dict(TINY))
    return text_encoder, unet


@pytest.fixture
def understood(pair: tuple[CLIPTextEncoder, UNet]) -> Understood:
    """The adapter of tensors in memory, for the tiny networks, in float32."""

    def call(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, unet: UNet | None = None) -> Adapter:
        source = Source.of(tensors, metadata)
        return understand(source, unet or pair[1], pair[0], torch.device("cpu"), torch.float32)

    return call
