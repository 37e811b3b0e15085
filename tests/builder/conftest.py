"""A tiny checkpoint of v1.x's layout as it would be published: a `.ckpt` with the leftovers of training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sd_core.formats.keys import ema_name


@pytest.fixture(scope="session")
def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as a training run saves them: older names, averages, schedule buffers, losses."""
    averages = {ema_name(name): tensor + 1 for name, tensor in state.items() if name.startswith("model.")}
    return {
        **{name.replace("text_model.", ""): tensor for name, tensor in state.items()},
        **averages,
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(470_000, dtype=torch.int32),
        "betas": torch.zeros(1000),
        "alphas_cumprod": torch.zeros(1000),
        "sqrt_one_minus_alphas_cumprod": torch.zeros(1000),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.transformer.embeddings.position_ids": torch.arange(77)[None],
        "some_tool.leftover": torch.zeros(3),
    }


@pytest.fixture
def source(tmp_path: Path, published: dict[str, Tensor]) -> Path:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": published, "epoch": 1, "optimizer_states": [{}]}, path)
    return path


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a state dict as a `.ckpt` of the given name and returns its path."""

    def write(tensors: dict[str, Tensor], name: str = "model.ckpt") -> Path:
        torch.save({"state_dict": tensors}, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "model.safetensors"
