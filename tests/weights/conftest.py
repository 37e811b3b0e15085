"""A tiny checkpoint of v1.x's layout, as tensors and as files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.models.clip import CLIPConfig
from sd_core.models.unet import UNetConfig
from sd_core.models.vae import VAEConfig
from sd_core.weights.check import expected_shapes
from sd_core.weights.detect import Architecture


@pytest.fixture(scope="session")
def tiny() -> Architecture:
    return Architecture(
        text=CLIPConfig(vocab_size=100, max_length=77, width=32, layers=2, heads=1, mlp_width=64),
        unet=UNetConfig(channels=(32, 64), num_res_blocks=1, attention_levels=(0,), context_dim=32),
        vae=VAEConfig(channels=(32, 32, 64, 64), num_res_blocks=1),
    )


@pytest.fixture(scope="session")
def state(tiny: Architecture) -> dict[str, Tensor]:
    """Seeded float32 weights by checkpoint name; not to be changed in place."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(tiny).items()}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes tensors as a safetensors file and returns its path."""

    def save(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / "model.safetensors"
        save_file(tensors, path, metadata)
        return path

    return save
