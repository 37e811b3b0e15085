"""How often networks are called in a test, and inputs for them."""

from typing import Any

import pytest
import torch
from torch import Tensor


def counted(monkeypatch: pytest.MonkeyPatch, network: type[Any], method: str) -> list[int]:
    """How many rows each call of a network's method had."""
    rows: list[int] = []
    call = getattr(network, method)

    def counting(self: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
        rows.append(len(x))
        return call(self, x, *rest, **named)

    monkeypatch.setattr(network, method, counting)
    return rows


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
