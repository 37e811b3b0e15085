"""Fixtures that write checkpoint files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes tensors as a safetensors file and returns its path."""

    def save(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / "model.safetensors"
        save_file(tensors, path, metadata)
        return path

    return save


@pytest.fixture
def ckpt(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes any object with torch.save and returns the file's path."""

    def save(value: object, *, zipped: bool = True) -> Path:
        path = tmp_path / "model.ckpt"
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        return path

    return save
