"""A tiny checkpoint of v1.x's layout, as tensors and as files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes tensors as a safetensors file and returns its path."""

    def save(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = tmp_path / "model.safetensors"
        save_file(tensors, path, metadata)
        return path

    return save
